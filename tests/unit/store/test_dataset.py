"""Datasets: the same rows are one dataset."""

from __future__ import annotations

from datetime import timedelta

import pytest

from slm_core.errors import RecordNotFound, StoreError
from slm_core.store import Store
from slm_core.testing.records import make_dataset


def test_a_dataset_reads_back_equal(store: Store) -> None:
    dataset = make_dataset(parent_test_ids=("dataset-a", "dataset-b"))
    assert store.datasets.save(dataset) == dataset
    assert store.datasets.save(dataset) == dataset
    assert store.datasets.get(dataset.id) == dataset
    assert store.datasets.list() == (dataset,)


def test_an_unknown_dataset_is_not_found(store: Store) -> None:
    with pytest.raises(RecordNotFound, match="no Dataset 'nothing'"):
        store.datasets.get("nothing")


def test_the_same_rows_built_again_keep_the_first_account_and_the_latest_path(
    store: Store,
) -> None:
    first = make_dataset()
    store.datasets.save(first)
    later = make_dataset(
        "/elsewhere", calls=400, spec_digest="other", created_at=first.created_at + timedelta(1)
    )
    expected = first.model_copy(update={"path": "/elsewhere"})
    assert store.datasets.save(later) == expected
    assert store.datasets.get(first.id) == expected
    assert store.verify() == []


@pytest.mark.parametrize("changes", [{"rows": {"train": 1}}, {"files": {"a": "b"}}])
def test_an_id_with_other_rows_is_refused(store: Store, changes: dict[str, object]) -> None:
    dataset = make_dataset()
    store.datasets.save(dataset)
    with pytest.raises(StoreError, match="already stored with other content") as caught:
        store.datasets.save(make_dataset(**changes))
    assert caught.value.context["fields"] == list(changes)
    assert store.datasets.get(dataset.id) == dataset


def test_datasets_with_a_test_split_are_frozen_oldest_first(store: Store) -> None:
    def dataset(name: str, day: int, test: int | None) -> None:
        rows = {"train": 10} | ({} if test is None else {"test": test})
        made_at = make_dataset().created_at + timedelta(days=day)
        store.datasets.save(make_dataset(id=name, rows=rows, created_at=made_at))

    dataset("late", 3, 20)
    dataset("none", 1, None)
    dataset("zero", 1, 0)
    dataset("early", 0, 20)
    assert [found.id for found in store.datasets.frozen_tests()] == ["early", "late"]
