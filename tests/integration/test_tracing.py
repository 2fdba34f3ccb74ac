"""Spans travel to a Langfuse on loopback as real OTLP protobuf, each exactly once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from slm_core.errors import TracingUnavailable
from slm_core.records import Metric
from slm_core.store import open_store
from slm_core.testing.langfuse_receiver import LangfuseReceiver, ReceivedSpan
from slm_core.tracing import RunTrace, check_langfuse, push, push_pending

pytestmark = pytest.mark.integration


class Outbox:
    """Kept spans in memory, as the store keeps them."""

    def __init__(self) -> None:
        self.spans: dict[str, dict[str, Any]] = {}
        self.sent: set[str] = set()

    def add(self, spans: Sequence[dict[str, Any]]) -> None:
        for span in spans:
            # The store keeps JSON: what goes in must survive it.
            self.spans.setdefault(span["id"], json.loads(json.dumps(span, allow_nan=False)))

    def pending(self, limit: int) -> list[dict[str, Any]]:
        return [span for id, span in self.spans.items() if id not in self.sent][:limit]

    def mark_sent(self, ids: Sequence[str]) -> None:
        self.sent.update(ids)


@pytest.fixture
def receiver() -> Iterator[LangfuseReceiver]:
    with LangfuseReceiver() as server:
        yield server


@pytest.fixture
def outbox() -> Outbox:
    return record_run("run-1")


def record_run(run_id: str) -> Outbox:
    """Record a small run: a root, two steps, an arm, and a step that failed."""
    outbox = Outbox()
    with RunTrace("retrain", run_id, sink=outbox, metadata={"preset": "nano"}) as trace:
        with trace.span("build dataset", input={"calls": 100}) as span:
            span.update(output={"dataset": "/runs/d"}, metrics={"rows": 100})
        with (
            trace.span("evaluate", kind="evaluator"),
            trace.span("arm adapter", metadata={"track": "toolcall"}) as arm,
        ):
            arm.update(metrics={"args_f1": Metric(value=0.9, n=50, low=0.8, high=0.95)})
        trace.record(
            "attempt 1",
            started_at=datetime.fromisoformat("2026-01-01T00:00:00.000001+00:00"),
            ended_at=datetime.fromisoformat("2026-01-01T01:00:00.500000+00:00"),
            error="out of memory",
        )
        trace.update(output={"outcome": "SUCCESS"})
    return outbox


def named(receiver: LangfuseReceiver, name: str) -> ReceivedSpan:
    (span,) = [span for span in receiver.spans if span.name == name]
    return span


def test_one_trace_arrives_whole(receiver: LangfuseReceiver, outbox: Outbox) -> None:
    result = push_pending(outbox, receiver.config(environment="staging", release="1.2"))
    assert result.ok
    assert set(result.sent) == outbox.sent == set(outbox.spans)
    assert len(receiver.uploads) == 1

    root, arm = named(receiver, "retrain"), named(receiver, "arm adapter")
    assert {span.trace_id for span in receiver.spans} == {root.trace_id}
    assert {span.id for span in receiver.spans} == set(outbox.spans)
    assert root.parent_id is None
    assert named(receiver, "evaluate").parent_id == root.id
    assert arm.parent_id == named(receiver, "evaluate").id

    assert root.attributes["langfuse.trace.name"] == "retrain"
    assert root.attributes["langfuse.trace.metadata.preset"] == '"nano"'
    assert root.attributes["langfuse.observation.type"] == "chain"
    assert json.loads(root.attributes["langfuse.observation.output"]) == {"outcome": "SUCCESS"}
    assert arm.attributes["langfuse.observation.metadata.track"] == '"toolcall"'
    build = named(receiver, "build dataset")
    assert json.loads(build.attributes["langfuse.observation.input"]) == {"calls": 100}
    assert named(receiver, "evaluate").attributes["langfuse.observation.type"] == "evaluator"
    assert root.resource == {"langfuse.environment": "staging", "langfuse.release": "1.2"}


def test_only_the_root_is_marked_as_root(receiver: LangfuseReceiver, outbox: Outbox) -> None:
    push_pending(outbox, receiver.config())
    marked = [s.name for s in receiver.spans if s.attributes.get("langfuse.internal.is_app_root")]
    assert marked == ["retrain"]


def test_times_and_errors_are_those_of_the_run(receiver: LangfuseReceiver, outbox: Outbox) -> None:
    push_pending(outbox, receiver.config())
    attempt = named(receiver, "attempt 1")
    assert attempt.start_ns == 1_767_225_600_000_001_000
    assert attempt.end_ns - attempt.start_ns == 3_600_499_999_000
    assert attempt.failed
    assert attempt.attributes["langfuse.observation.level"] == "ERROR"
    assert attempt.attributes["langfuse.observation.status_message"] == "out of memory"
    assert not named(receiver, "retrain").failed


def test_metrics_become_scores_of_their_span(receiver: LangfuseReceiver, outbox: Outbox) -> None:
    push_pending(outbox, receiver.config())
    arm = named(receiver, "arm adapter")
    scores = {score["name"]: score for score in receiver.scores.values()}
    assert set(scores) == {"args_f1", "rows"}
    assert scores["args_f1"]["value"] == 0.9
    assert scores["args_f1"]["observationId"] == arm.id
    assert scores["args_f1"]["traceId"] == arm.trace_id
    assert "n=50" in scores["args_f1"]["comment"]
    kept = json.loads(arm.attributes["langfuse.observation.metadata.metrics"])
    assert kept["args_f1"]["low"] == 0.8


def test_the_upload_is_the_packages(receiver: LangfuseReceiver, outbox: Outbox) -> None:
    push_pending(outbox, receiver.config())
    (headers,) = receiver.uploads
    assert headers["content-type"] == "application/x-protobuf"
    assert headers["content-encoding"] == "gzip"
    assert headers["x-langfuse-ingestion-version"] == "4"
    assert headers["x-langfuse-sdk-name"] == "python"


def test_the_store_keeps_what_is_recorded_until_it_is_sent(
    receiver: LangfuseReceiver, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    with open_store(url) as store:
        for _ in range(2):  # a run that is resumed
            with RunTrace("retrain", "run-1", sink=store.spans) as trace, trace.span("train"):
                pass
    with open_store(url) as store:
        assert store.spans.counts() == {"pending": 4, "sent": 0}
        assert push_pending(store.spans, receiver.config()).ok
        assert store.spans.counts() == {"pending": 0, "sent": 4}
    assert len({span.trace_id for span in receiver.spans}) == 1
    assert len({span.id for span in receiver.spans}) == 4


def test_a_second_push_sends_nothing(receiver: LangfuseReceiver, outbox: Outbox) -> None:
    push_pending(outbox, receiver.config())
    assert push_pending(outbox, receiver.config()).sent == ()
    assert len(receiver.uploads) == 1


def test_many_spans_and_attributes_all_arrive(receiver: LangfuseReceiver) -> None:
    outbox = Outbox()
    many = {f"key {number}": number for number in range(150)}
    for run in ("a", "b"):
        with RunTrace("eval", run, sink=outbox, metadata=many) as trace:
            for number in range(300):
                with trace.span(f"step {number}"):
                    pass
    assert push_pending(outbox, receiver.config()).ok
    assert len(receiver.spans) == len({span.id for span in receiver.spans}) == 602
    roots = [span for span in receiver.spans if span.parent_id is None]
    assert all("langfuse.observation.metadata.key 149" in root.attributes for root in roots)
    assert all("langfuse.observation.metadata.key 0" in root.attributes for root in roots)


def test_with_the_receiver_down_the_spans_are_kept_and_sent_later(outbox: Outbox) -> None:
    with LangfuseReceiver() as receiver:
        config = receiver.config(timeout_seconds=0.5)
    result = push_pending(outbox, config)
    assert (result.sent, set(result.failed)) == ((), set(outbox.spans))
    assert "does not answer" in result.reason
    with LangfuseReceiver() as receiver:
        assert push_pending(outbox, receiver.config()).ok
        assert len(receiver.spans) == len(outbox.spans)


def test_a_busy_server_is_asked_again(receiver: LangfuseReceiver, outbox: Outbox) -> None:
    receiver.upload_faults.append(503)
    assert push_pending(outbox, receiver.config(timeout_seconds=5)).ok
    assert len(receiver.uploads) == 2
    assert len(receiver.spans) == len(outbox.spans)


def test_refused_keys_are_told_and_nothing_is_lost(
    receiver: LangfuseReceiver, outbox: Outbox
) -> None:
    result = push_pending(outbox, receiver.config(secret_key="wrong"))
    assert "refuses the keys" in result.reason
    assert "wrong" not in result.reason
    assert not outbox.sent
    assert push_pending(outbox, receiver.config()).ok


@pytest.mark.parametrize("status", [302, 400, 413])
def test_a_refused_upload_is_no_success(
    receiver: LangfuseReceiver, outbox: Outbox, status: int
) -> None:
    receiver.upload_faults.append(status)
    result = push_pending(outbox, receiver.config())
    assert not result.ok
    assert f"HTTP {status}" in result.reason
    assert not outbox.sent


def test_one_refused_trace_does_not_hold_up_the_others(receiver: LangfuseReceiver) -> None:
    first, second = record_run("run-1"), record_run("run-2")
    receiver.upload_faults.append(413)
    result = push([*first.pending(100), *second.pending(100)], receiver.config())
    assert set(result.failed) == set(first.spans)
    assert set(result.sent) == set(second.spans)


def test_a_lost_answer_makes_no_duplicate(receiver: LangfuseReceiver, outbox: Outbox) -> None:
    receiver.upload_faults.append("take and close")
    assert push_pending(outbox, receiver.config()).ok
    assert len(receiver.uploads) == 1
    assert len(receiver.spans) == len(outbox.spans)
    assert receiver.scores


def test_a_lost_answer_shown_late_makes_no_duplicate(outbox: Outbox) -> None:
    with LangfuseReceiver(shown_after_seconds=1.0) as receiver:
        receiver.upload_faults.append("take and close")
        first = push_pending(outbox, receiver.config(confirm_seconds=0))
        assert "may have arrived" in first.reason
        assert not outbox.sent
        time.sleep(1.0)
        assert push_pending(outbox, receiver.config()).ok
        assert len(receiver.spans) == len(outbox.spans)


def test_the_wait_for_a_late_showing_is_long_enough(outbox: Outbox) -> None:
    with LangfuseReceiver(shown_after_seconds=1.0) as receiver:
        receiver.upload_faults.append(500)  # did not take them
        receiver.upload_faults.append("take and close")
        assert not push_pending(outbox, receiver.config()).ok
        assert push_pending(outbox, receiver.config(confirm_seconds=3)).ok
        assert len(receiver.spans) == len(outbox.spans)


def test_what_did_not_arrive_is_sent_by_the_next_push(
    receiver: LangfuseReceiver, outbox: Outbox
) -> None:
    receiver.upload_faults.append("close")
    assert not push_pending(outbox, receiver.config()).ok
    assert not receiver.spans
    assert push_pending(outbox, receiver.config()).ok
    assert len(receiver.spans) == len(outbox.spans)


def test_a_crash_before_marking_makes_no_duplicate(
    receiver: LangfuseReceiver, outbox: Outbox
) -> None:
    push(outbox.pending(100), receiver.config())  # killed here: nothing was marked
    assert push_pending(outbox, receiver.config()).ok
    assert len(receiver.spans) == len(outbox.spans)


def test_lost_scores_are_sent_again_without_the_spans(
    receiver: LangfuseReceiver, outbox: Outbox
) -> None:
    receiver.score_faults.append(503)
    assert not push_pending(outbox, receiver.config()).ok
    assert push_pending(outbox, receiver.config()).ok
    assert len(receiver.scores) == 2
    assert len(receiver.uploads) == 1


def test_scores_refused_for_good_do_not_hold_the_spans(
    receiver: LangfuseReceiver, outbox: Outbox
) -> None:
    receiver.score_faults.append(400)
    result = push(outbox.pending(100), receiver.config())
    assert result.ok
    assert "2 scores refused" in result.reason


def test_a_server_that_cannot_be_read_back_still_gets_spans(outbox: Outbox) -> None:
    with LangfuseReceiver(can_read_back=False) as receiver:
        assert push_pending(outbox, receiver.config()).ok
        assert len(receiver.spans) == len(outbox.spans)


def test_without_read_back_an_unknown_outcome_is_not_called_sent(outbox: Outbox) -> None:
    with LangfuseReceiver(can_read_back=False) as receiver:
        receiver.upload_faults.append("take and close")
        result = push_pending(outbox, receiver.config(confirm_seconds=60))
        assert not result.ok
        assert len(receiver.uploads) == 1


def test_a_process_with_telemetry_switched_off_does_not_pretend(
    receiver: LangfuseReceiver, outbox: Outbox
) -> None:
    script = (
        "import json, sys\n"
        "from slm_core.tracing import LangfuseConfig, push\n"
        "spans, config = json.load(sys.stdin)\n"
        "print(json.dumps(push(spans, LangfuseConfig(**config))))\n"
    )
    config = {"public_key": "pk-lf-test", "secret_key": "sk-lf-test", "base_url": receiver.base_url}
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps([outbox.pending(100), config]),
        env=os.environ | {"OTEL_SDK_DISABLED": "true"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    sent, failed, reason = json.loads(done.stdout)
    assert (sent, len(failed)) == ([], len(outbox.spans))
    assert "OTEL_" in reason


def test_the_preflight_passes_and_leaves_nothing_behind(receiver: LangfuseReceiver) -> None:
    check_langfuse(receiver.config())
    assert len(receiver.uploads) == 1
    assert not receiver.spans


def test_the_preflight_tells_a_dead_host() -> None:
    with LangfuseReceiver() as receiver:
        config = receiver.config(timeout_seconds=0.5)
    with pytest.raises(TracingUnavailable, match="does not answer"):
        check_langfuse(config)


def test_the_preflight_tells_refused_keys(receiver: LangfuseReceiver) -> None:
    with pytest.raises(TracingUnavailable, match="refuses the keys"):
        check_langfuse(receiver.config(public_key="pk-lf-other"))


def test_the_preflight_tells_an_old_server() -> None:
    with (
        LangfuseReceiver(version="3.172.1") as receiver,
        pytest.raises(TracingUnavailable, match=r"3\.172\.1"),
    ):
        check_langfuse(receiver.config())


def test_the_preflight_tells_a_blocked_upload(receiver: LangfuseReceiver) -> None:
    receiver.upload_faults.append(302)
    with pytest.raises(TracingUnavailable, match="does not take spans"):
        check_langfuse(receiver.config())
