from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from slm_core.backends.model_folder import check_model_folder, locate_model
from slm_core.errors import MissingDependency, ModelError


def make_folder(path: Path, **files: bytes) -> Path:
    contents = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": b"weights"}
    path.mkdir(exist_ok=True)
    for name, data in (contents | files).items():
        (path / name).write_bytes(data)
    return path


def write_sums(path: Path, *names: str) -> None:
    lines = [f"{hashlib.sha256((path / n).read_bytes()).hexdigest()}  {n}\n" for n in names]
    (path / "SHA256SUMS").write_text("".join(lines))


def test_returns_the_hash_of_the_weights(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    write_sums(folder, "model.safetensors", "config.json")
    assert check_model_folder(folder) == hashlib.sha256(b"weights").hexdigest()


def test_other_weights_than_listed_are_refused_with_both_hashes(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    write_sums(folder, "model.safetensors")
    (folder / "model.safetensors").write_bytes(b"tampered")
    with pytest.raises(ModelError) as caught:
        check_model_folder(folder)
    assert caught.value.context == {
        "expected": hashlib.sha256(b"weights").hexdigest(),
        "found": hashlib.sha256(b"tampered").hexdigest(),
    }


def test_weights_changed_after_a_good_check_are_noticed(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    write_sums(folder, "model.safetensors")
    check_model_folder(folder)
    (folder / "model.safetensors").write_bytes(b"weighty")
    with pytest.raises(ModelError, match="not the file"):
        check_model_folder(folder)


def test_a_changed_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    write_sums(folder, "model.safetensors", "tokenizer.json")
    (folder / "tokenizer.json").write_bytes(b"[]")
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        check_model_folder(folder)


def test_weights_that_the_sums_leave_out_are_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    write_sums(folder, "config.json")
    with pytest.raises(ModelError, match=r"does not list model\.safetensors"):
        check_model_folder(folder)


def test_a_listed_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, **{"chat_template.jinja": b"x"})
    write_sums(folder, "model.safetensors", "chat_template.jinja")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match=r"lists chat_template\.jinja, which is missing"):
        check_model_folder(folder)


def test_sums_in_another_format_are_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    (folder / "SHA256SUMS").write_text("model.safetensors: abc\n")
    with pytest.raises(ModelError, match="format"):
        check_model_folder(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_an_incomplete_folder_is_refused(tmp_path: Path, name: str) -> None:
    folder = make_folder(tmp_path)
    (folder / name).unlink()
    with pytest.raises(ModelError, match=r"lacks|no weights"):
        check_model_folder(folder)


def test_shards_count_each(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"a")
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"b")
    before = check_model_folder(folder)
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"cc")
    assert check_model_folder(folder) != before


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        check_model_folder(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["/no/such/model", "./nowhere", "assets/models/nowhere"])
def test_a_missing_path_is_not_taken_for_a_hub_id(name: str) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        locate_model(name)


@pytest.mark.parametrize("name", ["nobody/no-such-model", "-not-an-id-"])
def test_a_hub_id_that_cannot_be_had_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="neither a folder nor a model"):
        locate_model(name)


def test_without_the_hubs_client_only_folders_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert locate_model(str(tmp_path)) == tmp_path
    with pytest.raises(MissingDependency, match=r"pip install .*\[hub\]"):
        locate_model("owner/model")


def test_a_relative_folder_becomes_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path / "nano")
    monkeypatch.chdir(tmp_path)
    assert locate_model("nano") == tmp_path / "nano"
