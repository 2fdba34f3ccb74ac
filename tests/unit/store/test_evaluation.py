"""Evaluations and their metrics over time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from slm_core.errors import StoreError
from slm_core.store import Store
from slm_core.testing.records import make_evaluation, make_metric


def test_an_evaluation_reads_back_equal(store: Store) -> None:
    evaluation = make_evaluation()
    store.evaluations.save(evaluation)
    assert store.evaluations.save(evaluation) == evaluation
    assert store.evaluations.get(evaluation.id) == evaluation
    assert store.evaluations.list() == (evaluation,)


def test_an_evaluation_without_arms_is_kept(store: Store) -> None:
    empty = make_evaluation([])
    store.evaluations.save(empty)
    assert store.evaluations.get(empty.id) == empty


def test_other_numbers_under_the_same_id_are_refused(store: Store) -> None:
    store.evaluations.save(make_evaluation())
    with pytest.raises(StoreError, match="other content"):
        store.evaluations.save(make_evaluation(seed=43))


def test_the_same_outputs_measured_again_bring_times_and_files_up_to_date(store: Store) -> None:
    first = make_evaluation(["teacher"])
    arms = tuple(arm.model_copy(update={"seconds_p50": 9.5}) for arm in first.arms)
    later = {"arms": arms, "details_path": "/elsewhere", "details_sha256": "0" * 64}
    store.evaluations.save(first)
    saved = store.evaluations.save(
        first.model_copy(update=later | {"created_at": first.created_at + timedelta(days=1)})
    )
    assert saved == store.evaluations.get(first.id) == first.model_copy(update=later)
    assert store.verify() == []


def test_a_metric_is_followed_over_evaluations(store: Store) -> None:
    first = make_evaluation(["adapter"])
    (structured, toolcall) = first.arms
    better = structured.model_copy(
        update={"metrics": structured.metrics | {"field_f1": make_metric(0.99)}}
    )
    second = first.model_copy(
        update={
            "id": "evaluation-2",
            "adapter_id": None,
            "arms": (better, toolcall),
            "created_at": first.created_at + timedelta(days=1),
        }
    )
    store.evaluations.save(second)
    store.evaluations.save(first)
    history = store.evaluations.metric_history("structured", "adapter", "field_f1")
    assert [(p.evaluation_id, p.adapter_id, p.created_at, p.metric) for p in history] == [
        (first.id, first.adapter_id, first.created_at, structured.metrics["field_f1"]),
        (second.id, None, second.created_at, make_metric(0.99)),
    ]
    (lenient, _) = store.evaluations.metric_history(
        "structured", "adapter", "field_f1", view="lenient"
    )
    assert lenient.metric == structured.lenient["field_f1"]
    assert store.evaluations.metric_history("structured", "teacher", "field_f1") == []


def test_every_metric_is_in_the_narrow_table(store: Store, sql: Callable[..., list[Any]]) -> None:
    evaluation = make_evaluation()
    store.evaluations.save(evaluation)
    store.evaluations.save(evaluation)
    expected = sum(len(arm.metrics) + len(arm.lenient) for arm in evaluation.arms)
    assert sql("SELECT count(*) FROM evaluation_metrics") == [(expected,)]
