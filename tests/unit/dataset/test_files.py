"""A dataset on disk is whole or absent, and an altered one is refused."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
from pathlib import Path

import pytest

from slm_core.dataset import DatasetSpec, build, read_split
from slm_core.dataset.files import read_dataset, verify_dataset
from slm_core.errors import DatasetError
from slm_core.records import Message, ToolUse


@pytest.fixture
def dataset(make_calls, tmp_path):
    return build(make_calls(), DatasetSpec(), tmp_path / "datasets")


def test_the_folder_holds_what_the_manifest_says(dataset):
    folder = Path(dataset.path)
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}

    assert found == {*dataset.files, "manifest.json"}
    assert {"train.jsonl", "hermes/test.jsonl", "prompt_completion/val.jsonl"} < found
    assert {"drops.jsonl", "statistics.json", "statistics.md"} < found
    assert verify_dataset(folder) == dataset
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_a_moved_dataset_is_read_where_it_is(dataset, tmp_path):
    shutil.move(dataset.path, tmp_path / "moved")

    assert read_dataset(tmp_path / "moved").path == str(tmp_path / "moved")
    assert len(read_split(tmp_path / "moved", "train")) == dataset.rows["train"]


def test_an_altered_split_is_refused(dataset):
    path = Path(dataset.path) / "test.jsonl"
    path.write_bytes(path.read_bytes().replace(b"City", b"Town", 1))

    with pytest.raises(DatasetError, match=r"test.jsonl was altered"):
        read_split(dataset.path, "test")
    assert len(read_split(dataset.path, "train")) == dataset.rows["train"]


@pytest.mark.parametrize("cut", [0, 1, -1])
def test_a_cut_split_is_refused(dataset, cut):
    path = Path(dataset.path) / "train.jsonl"
    path.write_bytes(path.read_bytes()[:cut])

    with pytest.raises(DatasetError, match="altered"):
        read_split(dataset.path, "train")


def test_a_manifest_fitted_to_altered_rows_no_longer_gives_the_id(dataset):
    path = Path(dataset.path) / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["test.jsonl"] = manifest["files"]["train.jsonl"]
    path.write_text(json.dumps(manifest))

    with pytest.raises(DatasetError, match="id does not follow"):
        read_split(dataset.path, "test")


@pytest.mark.parametrize("text", ["", "{", "{}", "null", '{"id": 3}'])
def test_a_broken_manifest_is_refused(dataset, text):
    (Path(dataset.path) / "manifest.json").write_text(text)

    with pytest.raises(DatasetError, match=r"manifest.json cannot be read"):
        read_dataset(dataset.path)


def test_a_folder_without_a_manifest_is_no_dataset(dataset, tmp_path):
    (Path(dataset.path) / "manifest.json").unlink()

    with pytest.raises(DatasetError, match="No complete dataset"):
        read_split(dataset.path, "train")
    with pytest.raises(DatasetError, match="No complete dataset"):
        read_dataset(tmp_path / "nowhere")


def test_a_missing_split_file_is_named(dataset):
    (Path(dataset.path) / "val.jsonl").unlink()

    with pytest.raises(DatasetError, match=r"val.jsonl cannot be read"):
        read_split(dataset.path, "val")


def test_a_full_disk_leaves_no_half_dataset(make_calls, tmp_path):
    """The kernel refuses writes beyond 20 kB a file, as it would on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(DatasetError, match="Could not write the dataset"):
            build(make_calls(), DatasetSpec(), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert list(tmp_path.glob("*ds-*")) == []
    assert build(make_calls(), DatasetSpec(), tmp_path).calls == 120


@pytest.mark.skipif(sys.platform != "linux", reason="/proc can be written by nobody")
def test_a_folder_that_cannot_be_written_is_named(make_calls):
    with pytest.raises(DatasetError, match=r"/proc/slm-datasets/ds-.*permissions"):
        build(make_calls(), DatasetSpec(), "/proc/slm-datasets")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(make_calls, tmp_path):
    tmp_path.chmod(0o500)

    with pytest.raises(DatasetError, match="permissions"):
        build(make_calls(), DatasetSpec(), tmp_path)


def test_a_file_in_the_place_of_the_folder_is_named(make_calls, tmp_path):
    (tmp_path / "datasets").write_text("")

    with pytest.raises(DatasetError, match="Could not write"):
        build(make_calls(), DatasetSpec(), tmp_path / "datasets")


def test_text_and_key_order_survive_the_disk(make_call, make_calls, tmp_path):
    text = "Zürich 東京 🏔 \u2028 \x85 \x00 \r\n </tool_call> \ufeff"
    use = ToolUse(name="get_time", arguments={"z": 1, "a": [True, 1.0, None], "city": text})
    odd = make_call(900, messages=(Message(role="user", content=text),), tool_calls=(use,))

    dataset = build([*make_calls(), odd], DatasetSpec(), tmp_path)

    rows = [e for s in dataset.rows for e in read_split(dataset.path, s)]
    row = next(e for e in rows if e.source_call_id == "call-0900")
    assert row.prompt == odd.messages
    assert row.tools == odd.tools
    assert list(row.calls[0].arguments.items()) == list(use.arguments.items())
    assert [type(v) for v in row.calls[0].arguments["a"]] == [bool, float, type(None)]


def test_broken_unicode_in_an_error_does_not_stop_the_build(make_call, make_calls, tmp_path):
    bad = [
        make_call(900, success=False, error="bad \ud800 byte"),
        make_call(901, messages=(Message(role="user", content="\udcff"),)),
    ]

    dataset = build([*make_calls(), *bad], DatasetSpec(), tmp_path)

    assert dataset.drops == {"call failed": 1, "holds NaN or broken Unicode": 1}
