"""A run's spans: nested, kept as they end, never the cause of a failure."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextvars import copy_context
from datetime import datetime, timedelta
from typing import Any

import pytest

from slm_core.errors import NotEnoughCalls, StoreUnavailable
from slm_core.records import Metric, utc_now
from slm_core.tracing import RunTrace


class Kept:
    """A sink in memory that can be out of order."""

    def __init__(self) -> None:
        self.by_id: dict[str, dict[str, Any]] = {}
        self.down = False

    def add(self, spans: Sequence[dict[str, Any]]) -> None:
        if self.down:
            raise StoreUnavailable("the database did not answer")
        for span in spans:
            self.by_id.setdefault(span["id"], dict(span))

    def named(self, name: str) -> dict[str, Any]:
        (span,) = [span for span in self.by_id.values() if span["name"] == name]
        return span


def test_spans_nest_and_share_the_trace() -> None:
    sink = Kept()
    with RunTrace("retrain", "run-1", sink=sink) as trace:
        with trace.span("evaluate"), trace.span("arm adapter"):
            pass
        with trace.span("decide"):
            pass
    root = sink.named("retrain")
    assert root["parent_id"] is None
    assert sink.named("evaluate")["parent_id"] == root["id"]
    assert sink.named("arm adapter")["parent_id"] == sink.named("evaluate")["id"]
    assert sink.named("decide")["parent_id"] == root["id"]
    assert {span["trace_id"] for span in sink.by_id.values()} == {trace.trace_id}
    assert len(sink.by_id) == 4


def test_a_span_is_kept_when_it_ends_not_when_the_run_does() -> None:
    sink = Kept()
    with RunTrace("retrain", "run-1", sink=sink) as trace:
        with trace.span("build dataset"):
            assert not sink.by_id
        assert sink.named("build dataset")["status"] == "ok"


def test_output_metadata_and_metrics_are_on_the_span() -> None:
    sink = Kept()
    with RunTrace("eval", "run-1", sink=sink, metadata={"preset": "nano"}) as trace:
        with trace.span("arm", input={"cases": 50}, metadata={"arm": "adapter"}) as span:
            span.update(output={"path": "details.jsonl"}, metadata={"track": "toolcall"})
            span.update(
                metrics={
                    "args_f1": Metric(value=0.9, n=50, low=0.8, high=0.95),
                    "seconds": 1.5,
                    "cost": None,
                }
            )
        trace.update(output={"outcome": "SUCCESS"})
    arm = sink.named("arm")
    assert arm["input"] == {"cases": 50}
    assert arm["output"] == {"path": "details.jsonl"}
    assert arm["metadata"] == {"arm": "adapter", "track": "toolcall"}
    assert arm["metrics"] == {
        "args_f1": {"value": 0.9, "n": 50, "low": 0.8, "high": 0.95},
        "seconds": {"value": 1.5},
    }
    root = sink.named("eval")
    assert root["output"] == {"outcome": "SUCCESS"}
    assert root["metadata"] == {"run_id": "run-1", "preset": "nano"}


def test_an_error_is_recorded_on_every_open_span_and_passes_through() -> None:
    sink = Kept()
    with (
        pytest.raises(NotEnoughCalls),
        RunTrace("retrain", "run-1", sink=sink) as trace,
        trace.span("build dataset"),
    ):
        raise NotEnoughCalls("99 of 100 usable calls", missing=1)
    assert sink.named("build dataset")["status"] == "error"
    assert "99 of 100" in sink.named("build dataset")["error"]
    assert sink.named("retrain")["status"] == "error"


def test_a_foreign_error_is_named_but_not_quoted() -> None:
    sink = Kept()
    with pytest.raises(KeyError), RunTrace("retrain", "run-1", sink=sink):
        raise KeyError("what the customer asked")
    assert sink.named("retrain")["error"] == "KeyError"


def test_times_are_in_order_and_carry_a_zone() -> None:
    sink = Kept()
    with RunTrace("retrain", "run-1", sink=sink) as trace, trace.span("train"):
        pass
    outer, inner = sink.named("retrain"), sink.named("train")
    moments = [outer["started_at"], inner["started_at"], inner["ended_at"], outer["ended_at"]]
    times = [datetime.fromisoformat(moment) for moment in moments]
    assert times == sorted(times)
    assert all(time.utcoffset() == timedelta(0) for time in times)


def test_same_name_twice_gives_two_spans() -> None:
    sink = Kept()
    with RunTrace("retrain", "run-1", sink=sink) as trace:
        for _ in range(3):
            with trace.span("train"):
                pass
    assert len(sink.by_id) == 4


def test_a_resumed_run_adds_to_the_same_trace() -> None:
    sink = Kept()
    for _ in range(2):
        with RunTrace("retrain", "run-1", sink=sink) as trace, trace.span("train"):
            pass
    assert len(sink.by_id) == 4
    assert {span["trace_id"] for span in sink.by_id.values()} == {trace.trace_id}


def test_a_thread_given_the_context_nests_and_a_bare_one_hangs_under_the_run() -> None:
    sink = Kept()
    with RunTrace("retrain", "run-1", sink=sink) as trace, trace.span("evaluate"):

        def work(name: str) -> None:
            with trace.span(name):
                pass

        threads = [
            threading.Thread(target=copy_context().run, args=(work, "with context")),
            threading.Thread(target=work, args=("bare",)),
        ]
        for thread in threads:
            thread.start()
            thread.join()
    assert sink.named("with context")["parent_id"] == sink.named("evaluate")["id"]
    assert sink.named("bare")["parent_id"] == sink.named("retrain")["id"]


def test_another_trace_around_is_no_parent() -> None:
    sink = Kept()
    with (
        RunTrace("retrain", "run-1", sink=sink),
        RunTrace("eval", "run-2", sink=sink) as inner,
        inner.span("arm"),
    ):
        pass
    assert sink.named("arm")["parent_id"] == sink.named("eval")["id"]
    assert sink.named("eval")["parent_id"] is None


def test_a_finished_step_can_be_added_with_its_own_times() -> None:
    sink = Kept()
    began = utc_now() - timedelta(hours=2)
    with RunTrace("train", "run-1", sink=sink) as trace, trace.span("train"):
        trace.record(
            "attempt 1",
            started_at=began,
            ended_at=began + timedelta(hours=1),
            error="out of memory at step 12",
        )
    attempt = sink.named("attempt 1")
    assert attempt["started_at"] == began.isoformat()
    assert (attempt["status"], attempt["error"]) == ("error", "out of memory at step 12")
    assert attempt["parent_id"] is not None


def test_a_failing_sink_delays_but_loses_nothing() -> None:
    sink = Kept()
    with RunTrace("retrain", "run-1", sink=sink) as trace:
        sink.down = True
        with trace.span("build"):
            pass
        assert not sink.by_id
        sink.down = False
        with trace.span("train"):
            pass
        assert len(sink.by_id) == 2
    assert len(sink.by_id) == 3


def test_a_sink_that_stays_down_is_told_at_the_end() -> None:
    sink = Kept()
    sink.down = True
    with pytest.raises(StoreUnavailable), RunTrace("retrain", "run-1", sink=sink):
        pass


def test_a_sink_that_stays_down_never_hides_the_real_error() -> None:
    sink = Kept()
    sink.down = True
    with pytest.raises(NotEnoughCalls), RunTrace("retrain", "run-1", sink=sink):
        raise NotEnoughCalls("99 of 100")
