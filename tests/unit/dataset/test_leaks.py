"""A planted leak is found, named, and stops the work."""

from __future__ import annotations

import pytest

from slm_core.dataset import DatasetSpec, build, read_split
from slm_core.dataset.counts import count_rows
from slm_core.dataset.examples import examine
from slm_core.dataset.files import dataset_id, split_file, to_jsonl, write_dataset
from slm_core.dataset.leaks import check_leaks
from slm_core.dataset.test_sets import gold_id, write_test_set
from slm_core.errors import LeakFound
from slm_core.records import SPLITS, Dataset, Message, sha256_hex


def write_splits(splits, folder) -> str:
    """Write a dataset with a valid manifest, whatever its rows are."""
    files = {split_file(s): to_jsonl(e.model_dump(mode="json") for e in splits[s]) for s in SPLITS}
    counts = count_rows(splits, [], None)

    def describe(path, hashes):
        return Dataset(
            id=dataset_id(hashes),
            path=path,
            rows=counts["rows"],
            files=hashes,
            calls=counts["calls"],
            drops={},
            spec_digest=sha256_hex(""),
        )

    return write_dataset(folder, files, describe).path


@pytest.fixture
def splits(make_calls):
    examples = [examine(call) for call in make_calls(30)]
    return {"train": examples[:20], "val": examples[20:25], "test": examples[25:]}


def test_clean_splits_pass(splits, tmp_path):
    check_leaks(write_splits(splits, tmp_path))


@pytest.mark.parametrize("held_out", ["val", "test"])
@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({}, "conversation"),
        ({"conversation_id": "elsewhere"}, "prompt"),
        ({"conversation_id": "elsewhere", "tools": ()}, "question"),
    ],
)
def test_a_held_out_row_in_train_is_named(splits, tmp_path, held_out, change, key):
    row = splits["train"][4]
    splits[held_out].append(row.model_copy(update={"id": "planted", **change}))

    with pytest.raises(LeakFound, match=rf"planted = {row.id} \(same {key}\)") as caught:
        check_leaks(write_splits(splits, tmp_path))

    assert caught.value.context["rows"] == ("planted",)


def test_a_test_row_in_val_is_a_leak(splits, tmp_path):
    splits["test"].append(splits["val"][0].model_copy(update={"id": "planted"}))

    with pytest.raises(LeakFound, match="planted"):
        check_leaks(write_splits(splits, tmp_path))


def test_near_duplicates_can_be_allowed(splits, tmp_path):
    row = splits["train"][4]
    splits["test"].append(
        row.model_copy(update={"id": "planted", "conversation_id": "elsewhere", "tools": ()})
    )

    check_leaks(write_splits(splits, tmp_path), near_duplicates="ignore")


def test_a_test_set_file_is_compared_with_train_and_val(splits, make_call, tmp_path):
    path = write_splits(splits, tmp_path)
    fresh = examine(make_call(700))
    asked = splits["val"][0].prompt[-1].content
    leaked = fresh.model_copy(
        update={"id": "planted", "prompt": (Message(role="user", content=asked.lower()),)}
    )
    write_test_set([fresh], tmp_path / "clean.jsonl")
    write_test_set([fresh, leaked], tmp_path / "leaky.jsonl")

    check_leaks(path, [tmp_path / "clean.jsonl"])
    with pytest.raises(LeakFound, match="1 held-out row"):
        check_leaks(path, [tmp_path / "leaky.jsonl"])


def test_test_rows_that_two_datasets_share_are_no_leak(splits, make_calls, tmp_path):
    one = write_splits(splits, tmp_path)
    fresh = [examine(call) for call in make_calls(30, first=100)]
    other = write_splits({**splits, "train": fresh[:25], "val": fresh[25:]}, tmp_path)

    check_leaks(other, [one])


def test_build_keeps_a_test_set_file_out(make_calls, tmp_path):
    gold = [examine(call) for call in make_calls(10)]
    write_test_set(gold, tmp_path / "gold.jsonl")

    dataset = build(make_calls(140), DatasetSpec(), tmp_path, frozen=[str(tmp_path / "gold.jsonl")])

    assert dataset.drops == {"in a frozen test split": 10}
    assert dataset.parent_test_ids == (gold_id(gold),)
    check_leaks(dataset.path, [tmp_path / "gold.jsonl"])
    assert len(read_split(dataset.path, "test")) == dataset.rows["test"]


def test_a_long_list_of_leaks_is_shortened(splits, tmp_path):
    splits["test"] = [e.model_copy(update={"id": f"planted-{e.id}"}) for e in splits["train"]]

    with pytest.raises(LeakFound, match=r"20 held-out.* and 10 more") as caught:
        check_leaks(write_splits(splits, tmp_path))

    assert len(caught.value.context["rows"]) == 20
