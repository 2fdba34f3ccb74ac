"""Each span reaches Langfuse once, though Langfuse shows it late and many runs push at once.

The receiver here never shows a span within the test, as Langfuse does not for 15 to 30 seconds:
what keeps a second copy away is what we remember, not what we can read back.
"""

from __future__ import annotations

import fcntl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from slm_core.settings import Settings
from slm_core.store import Store, open_store
from slm_core.testing.langfuse_receiver import LangfuseReceiver
from slm_core.tracing import PushResult, RunTrace, push_pending
from slm_core.tracing.push import LOCK_NAME
from tasks import _wiring

pytestmark = pytest.mark.integration

LATE_SECONDS = 600.0
SPANS, SCORES = 3, 2
"""Of one run that ``record`` records."""


@pytest.fixture
def receiver() -> Iterator[LangfuseReceiver]:
    with LangfuseReceiver(shown_after_seconds=LATE_SECONDS) as server:
        yield server


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(f"sqlite:///{tmp_path / 'store.db'}") as store:
        yield store


def record(store: Store, run_id: str) -> None:
    with RunTrace("retrain", run_id, sink=store.spans) as trace:
        with trace.span("build dataset") as span:
            span.update(metrics={"rows": 100})
        with trace.span("evaluate") as span:
            span.update(metrics={"args_f1": 0.9})


def assert_all_arrived_once(receiver: LangfuseReceiver, store: Store, runs: int) -> None:
    ids = [span.id for span in receiver.spans]
    assert len(ids) == len(set(ids)) == runs * SPANS
    assert len(receiver.scores) == runs * SCORES
    assert {score["observationId"] for score in receiver.scores.values()} < set(ids)
    assert store.spans.counts() == {"pending": 0, "sent": runs * SPANS}


@pytest.mark.parametrize("status", [429, 500, 503])
def test_scores_that_are_not_taken_make_no_second_copy(
    receiver: LangfuseReceiver, store: Store, status: int
) -> None:
    record(store, "run-1")
    receiver.score_faults.append(status)
    first = push_pending(store.spans, receiver.config())
    assert not first.ok
    assert f"HTTP {status}" in first.reason

    assert push_pending(store.spans, receiver.config()).ok
    assert_all_arrived_once(receiver, store, runs=1)


def test_a_later_push_sends_only_the_trace_that_failed(
    receiver: LangfuseReceiver, store: Store
) -> None:
    record(store, "run-1")
    record(store, "run-2")
    receiver.score_faults.extend([None, 503])
    first = push_pending(store.spans, receiver.config())
    assert (len(first.sent), len(first.failed)) == (SPANS, SPANS)
    assert store.spans.counts() == {"pending": SPANS, "sent": SPANS}

    assert push_pending(store.spans, receiver.config()).ok
    assert_all_arrived_once(receiver, store, runs=2)


def test_scores_are_taken_again_when_the_upload_fails(
    receiver: LangfuseReceiver, store: Store
) -> None:
    record(store, "run-1")
    receiver.upload_faults.append(500)
    assert not push_pending(store.spans, receiver.config()).ok
    assert push_pending(store.spans, receiver.config()).ok
    assert_all_arrived_once(receiver, store, runs=1)


def test_a_push_that_dies_has_marked_what_langfuse_took(
    receiver: LangfuseReceiver, store: Store
) -> None:
    class DiesAfterOneTrace:
        """The store's outbox, in a process that ends with the first use of it."""

        def pending(self, limit: int) -> Sequence[dict[str, object]]:
            return store.spans.pending(limit)

        def mark_sent(self, ids: Sequence[str]) -> None:
            store.spans.mark_sent(ids)
            raise KeyboardInterrupt

    record(store, "run-1")
    record(store, "run-2")
    with pytest.raises(KeyboardInterrupt):
        push_pending(DiesAfterOneTrace(), receiver.config())
    assert len(receiver.spans) == SPANS
    assert push_pending(store.spans, receiver.config()).ok
    assert_all_arrived_once(receiver, store, runs=2)


def test_a_push_beside_a_working_one_sends_nothing_and_says_so(
    store: Store, tmp_path: Path
) -> None:
    done: list[PushResult] = []
    with LangfuseReceiver(shown_after_seconds=1.0) as receiver:
        receiver.upload_faults.append("take and close")  # so that the first push waits
        config = receiver.config(confirm_seconds=10)
        record(store, "run-1")
        first = threading.Thread(
            target=lambda: done.append(push_pending(store.spans, config, folder=tmp_path))
        )
        first.start()
        while not receiver.uploads:
            time.sleep(0.01)
        record(store, "run-2")
        second = push_pending(store.spans, config, folder=tmp_path)
        assert second.sent == ()
        assert len(second.failed) == 2 * SPANS
        assert f"another push, which holds {tmp_path / LOCK_NAME}" in second.reason

        first.join()
        # The working push goes on with what was recorded meanwhile.
        assert [(result.ok, len(result.sent)) for result in done] == [(True, 2 * SPANS)]
        assert_all_arrived_once(receiver, store, runs=2)


def test_runs_that_end_at_once_in_several_processes_send_each_span_once(
    store: Store, tmp_path: Path
) -> None:
    script = """
import sys
from pathlib import Path
from slm_core.store import open_store
from slm_core.tracing import LangfuseConfig, RunTrace, push_pending

url, base_url, folder, run_id = sys.argv[1:]
config = LangfuseConfig(
    public_key="pk-lf-test", secret_key="sk-lf-test", base_url=base_url, confirm_seconds=0
)
with open_store(url) as store:
    with RunTrace("retrain", run_id, sink=store.spans) as trace:
        with trace.span("build dataset") as span:
            span.update(metrics={"rows": 100})
        with trace.span("evaluate") as span:
            span.update(metrics={"args_f1": 0.9})
    push_pending(store.spans, config, folder=Path(folder))
"""
    runs = 3
    with LangfuseReceiver(shown_after_seconds=LATE_SECONDS, upload_seconds=1.0) as receiver:
        url, folder = f"sqlite:///{tmp_path / 'store.db'}", tmp_path / "home"
        command = [sys.executable, "-c", script, url, receiver.base_url]
        processes = [
            subprocess.Popen([*command, str(folder), f"run-{number}"]) for number in range(runs)
        ]
        assert [process.wait(120) for process in processes] == [0] * runs
        assert push_pending(store.spans, receiver.config(), folder=folder).ok  # what was skipped
        assert_all_arrived_once(receiver, store, runs=runs)


def test_with_nothing_to_send_a_push_beside_another_has_nothing_to_say(
    receiver: LangfuseReceiver, store: Store, tmp_path: Path
) -> None:
    with (tmp_path / LOCK_NAME).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert push_pending(store.spans, receiver.config(), folder=tmp_path) == PushResult()


def test_a_folder_that_cannot_be_locked_keeps_the_spans_and_fails_nobody(
    receiver: LangfuseReceiver, store: Store, tmp_path: Path
) -> None:
    record(store, "run-1")
    taken = tmp_path / "a file"
    taken.touch()
    result = push_pending(store.spans, receiver.config(), folder=taken / "home")
    assert len(result.failed) == SPANS
    assert "cannot be locked" in result.reason
    assert not receiver.spans
    assert push_pending(store.spans, receiver.config(), folder=tmp_path).ok
    assert_all_arrived_once(receiver, store, runs=1)


def test_a_run_that_ends_beside_a_working_push_leaves_its_spans(
    receiver: LangfuseReceiver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = {
        "LANGFUSE_PUBLIC_KEY": receiver.public_key,
        "LANGFUSE_SECRET_KEY": receiver.secret_key,
        "LANGFUSE_BASE_URL": receiver.base_url,
    }
    _wiring.configure(Settings.from_env(keys | {"SLM_HOME": str(tmp_path)}))
    try:
        with (tmp_path / LOCK_NAME).open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            with _wiring.traced("retrain", "run-1"):
                pass
            assert not receiver.uploads
            assert "spans kept for later count=1 reason=another push" in caplog.text
        with _wiring.traced("retrain", "run-2"):
            pass
    finally:
        _wiring._settings.clear()
    assert {span.attributes["langfuse.trace.name"] for span in receiver.spans} == {"retrain"}
    assert len(receiver.spans) == len({span.id for span in receiver.spans}) == 2
