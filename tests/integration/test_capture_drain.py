"""From the spool folder into a real store."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from slm_core.capture import CaptureSpec, WorkflowTracer, drain_spool
from slm_core.capture.segment import Segment
from slm_core.dataset import why_unusable
from slm_core.errors import CaptureError, StoreError, StoreUnavailable
from slm_core.records import DropReason, IngestReport
from slm_core.store import Store, open_store

pytestmark = pytest.mark.integration

AGENT: dict[str, Any] = {"agent_type": "sub-agent", "agent_name": "booking", "model_used": "gpt-4o"}
SMALL = CaptureSpec(segment_bytes=16384, strict=True)

drain = partial(drain_spool, usable=why_unusable)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(f"sqlite:///{tmp_path}/slm.db") as store:
        yield store


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    folder = tmp_path / "spool"
    folder.mkdir()
    return folder


def tracer_for(spool: Path) -> WorkflowTracer:
    return WorkflowTracer(SMALL, spool_dir=spool)


def capture(tracer: WorkflowTracer, count: int, **more: Any) -> list[str]:
    return [
        tracer.capture_call(
            **AGENT, user_query=f"question {n}", assistant_response=answer(n), **more
        )
        for n in range(count)
    ]


def answer(n: int) -> str:
    return json.dumps({"name": "say", "arguments": {"text": f"answer {n}"}})


def stored_ids(store: Store) -> list[str]:
    return [call.id for call in store.calls.select()]


def counts_add_up(report: IngestReport) -> bool:
    return (
        report.read == report.stored + report.duplicates + report.quarantined
        and report.stored == report.usable + sum(report.unusable.values())
    )


def test_calls_arrive_once(store: Store, spool: Path) -> None:
    with tracer_for(spool) as tracer:
        ids = capture(tracer, 2500)
        report = drain(spool, store)
        assert sorted(stored_ids(store)) == sorted(ids)
        assert (report.read, report.stored, report.usable, report.waiting) == (2500,) * 4
        assert drain(spool, store).read == 0
        assert len(list(spool.glob("*.seg"))) == 1  # the one its writer still holds
        ids += capture(tracer, 10, tags={"again": "yes"})
        assert drain(spool, store).stored == 10
    assert drain(spool, store).read == 0
    assert list(spool.glob("*.seg")) == []
    assert sorted(stored_ids(store)) == sorted(ids)


def test_reasons_are_counted(store: Store, spool: Path) -> None:
    with tracer_for(spool) as tracer:
        capture(tracer, 3)
        tracer.capture_call(**AGENT, user_query="q", success=False, error="x")
        tracer.capture_call(**AGENT, user_query="q", assistant_response="a", complete=False)
        tracer.capture_call(**AGENT, user_query="q", assistant_response="a", source="slm")
    report = drain(spool, store)
    assert report.unusable == {
        DropReason.FAILED: 1,
        DropReason.INCOMPLETE: 1,
        DropReason.SLM_ANSWER: 1,
    }
    assert report.usable == 3
    assert counts_add_up(report)


def test_another_filter_may_decide(store: Store, spool: Path) -> None:
    with tracer_for(spool) as tracer:
        capture(tracer, 4)
    report = drain(
        spool, store, usable=lambda call: "too dull" if "2" in (call.response or "") else None
    )
    assert (report.usable, report.unusable) == (3, {"too dull": 1})


def test_idempotency_keys(store: Store, spool: Path) -> None:
    with tracer_for(spool) as tracer:
        for _ in range(3):
            capture(tracer, 1, idempotency_key="order-7")
    report = drain(spool, store)
    assert (report.read, report.stored, report.duplicates) == (3, 1, 2)


class FailingCalls:
    """The store's calls, failing once after a commit, as a crash right there would."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self.failures = 1

    def add(self, *arguments: Any, **options: Any) -> Any:
        result = self._real.add(*arguments, **options)
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("the connection broke after the commit")
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class FailingStore:
    def __init__(self, real: Store) -> None:
        self.calls = FailingCalls(real.calls)
        self.quarantine = real.quarantine


def test_a_break_after_the_commit_repeats_nothing(store: Store, spool: Path) -> None:
    with tracer_for(spool) as tracer:
        ids = capture(tracer, 20)
    failing: Any = FailingStore(store)
    with pytest.raises(StoreUnavailable):
        drain(spool, failing)
    assert len(list(spool.glob("*.seg"))) == 1  # kept: who knows what was committed
    report = drain(spool, failing)
    assert (report.read, report.stored) == (0, 0)
    assert sorted(stored_ids(store)) == sorted(ids)
    assert list(spool.glob("*.seg")) == []


class BrokenCalls:
    """The calls of a database that is damaged altogether."""

    def add(self, *_: Any, **__: Any) -> Any:
        raise StoreError("The database is damaged.")

    def count(self) -> int:
        raise StoreError("The database is damaged.")

    def spool_offset(self, _: str) -> int:
        return 0


def test_a_damaged_database_is_no_reason_for_quarantine(store: Store, spool: Path) -> None:
    with tracer_for(spool) as tracer:
        capture(tracer, 20)
    failing: Any = FailingStore(store)
    failing.calls = BrokenCalls()
    with pytest.raises(StoreError, match="damaged"):
        drain(spool, failing)
    assert store.quarantine.list() == ()
    assert drain(spool, store).stored == 20


def test_two_drains_at_once_take_turns(store: Store, spool: Path, tmp_path: Path) -> None:
    with tracer_for(spool) as tracer:
        ids = capture(tracer, 3000)
    reports: list[IngestReport] = []

    def drain_once() -> None:
        with open_store(f"sqlite:///{tmp_path}/slm.db") as own:
            reports.append(drain(spool, own))

    threads = [threading.Thread(target=drain_once) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(report.stored for report in reports) == 3000
    assert sum(report.duplicates for report in reports) == 0
    assert sorted(stored_ids(store)) == sorted(ids)


def test_damage_is_quarantined_and_the_segment_kept(store: Store, spool: Path) -> None:
    with tracer_for(spool) as tracer:
        capture(tracer, 10)
    (segment,) = spool.glob("*.seg")
    data = bytearray(segment.read_bytes())
    at = data.index(b"answer 4")
    data[at] = 0xFF
    segment.write_bytes(data)
    report = drain(spool, store)
    assert (report.read, report.stored, report.quarantined) == (10, 9, 1)
    (row,) = store.quarantine.list()
    assert row.reason == "checksum does not match"
    assert row.source.startswith(f"{segment.name}:")
    assert "nswer 4" in row.raw
    assert not segment.exists()
    assert (spool / "damaged" / segment.name).read_bytes() == data


def write_segment(spool: Path, *bodies: bytes) -> None:
    segment = Segment(spool / "foreign-000001.seg", 4 * 1024 * 1024)
    for body in bodies:
        segment.append(body)
    segment.close()


def test_frames_that_are_no_calls_are_quarantined(store: Store, spool: Path) -> None:
    write_segment(spool, b"not json", b"[1, 2]", b'{"id": "1"}', b'"' + b"x" * 100_000 + b'"')
    report = drain(spool, store)
    assert (report.read, report.quarantined) == (4, 4)
    assert all(row.reason.startswith("not a call: ") for row in store.quarantine.list())
    assert max(len(row.raw) for row in store.quarantine.list()) == 64 * 1024
    assert (spool / "damaged" / "foreign-000001.seg").exists()  # one row was cut


def test_a_call_that_no_database_holds_stops_no_other(store: Store, spool: Path) -> None:
    with tracer_for(spool) as tracer:
        ids = capture(tracer, 5)
        tracer.capture_call(**AGENT, user_query="q", prompt_tokens=2**70, completion_tokens=1)
        ids += capture(tracer, 5, tags={"x": "y"})
    report = drain(spool, store)
    assert sorted(stored_ids(store)) == sorted(ids)
    assert (report.read, report.stored, report.quarantined) == (11, 10, 1)
    assert counts_add_up(report)
    assert list(spool.glob("*.seg")) == []


def reaches_the_store(store: Store, spool: Path) -> None:
    texts = ["", "\x00", "\ud800 lone", "x" * 1_000_000, "\U0001f600", "\\u0000"]
    arguments = {"huge": 2**80, "\udfff": [None, 1.5]}
    with WorkflowTracer(CaptureSpec(strict=True), spool_dir=spool) as tracer:
        for text in texts:
            tracer.capture_call(
                **AGENT,
                user_query=text,
                assistant_response=text,
                tool_calls=[{"name": "f", "arguments": arguments}],
            )
        tracer.capture_call(**AGENT, user_query="q", prompt_tokens=2**70, completion_tokens=1)
        ids = capture(tracer, 1200)
    report = drain(spool, store)
    assert (report.read, report.stored) == (1207, 1206)
    assert report.quarantined == 1
    calls = list(store.calls.select())
    assert [call.response for call in calls[:6]] == texts
    assert [call.messages[0].content for call in calls[:6]] == texts
    assert all(call.tool_calls[0].arguments == arguments for call in calls[:6])
    assert [call.id for call in calls[6:]] == ids
    assert list(spool.glob("*.seg")) == []


def test_any_text_reaches_sqlite(store: Store, spool: Path) -> None:
    reaches_the_store(store, spool)


def test_any_text_reaches_postgresql(postgres_database: str, spool: Path) -> None:
    with open_store(postgres_database) as store:
        reaches_the_store(store, spool)


def test_an_empty_or_missing_folder(store: Store, tmp_path: Path) -> None:
    assert drain(tmp_path / "none" / "yet", store) == IngestReport()


def test_files_that_are_not_ours_stay(store: Store, spool: Path) -> None:
    (spool / "notes.txt").write_text("hello")
    (spool / "new.jsonl.part").write_text("{}")
    drain(spool, store)
    assert {path.name for path in spool.iterdir()} == {"notes.txt", "new.jsonl.part", "drain.lock"}


def test_what_a_writer_left_before_its_first_call_is_swept(store: Store, spool: Path) -> None:
    old, young = spool / "old.new", spool / "young.new"
    for path in (old, young):
        path.write_bytes(b"")
    os.utime(old, (1, 1))
    drain(spool, store)
    assert (old.exists(), young.exists()) == (False, True)


def test_a_folder_that_cannot_be_read(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CaptureError, match="cannot be drained"):
        drain(tmp_path / "file" / "spool", store)


def test_progress_is_told(store: Store, spool: Path) -> None:
    with tracer_for(spool) as tracer:
        capture(tracer, 100)
    (spool / "a.jsonl").write_text("{}")
    told: list[tuple[int, int, str]] = []
    drain(spool, store, on_progress=lambda *what: told.append(what))
    files = told[0][1]
    assert [done for done, _, _ in told] == list(range(files + 1))
    assert told[-2][2] == "a.jsonl"


def test_a_writer_is_drained_while_it_writes(store: Store, spool: Path) -> None:
    ids: list[str] = []
    tracer = tracer_for(spool)
    stop = time.monotonic() + 1.0

    def write() -> None:
        while time.monotonic() < stop:
            ids.extend(capture(tracer, 20))
            time.sleep(0.005)
        tracer.close()

    thread = threading.Thread(target=write)
    thread.start()
    reports = []
    while thread.is_alive():
        reports.append(drain(spool, store))
    thread.join()
    reports.append(drain(spool, store))
    assert sum(report.stored for report in reports) == len(ids)
    assert sum(report.duplicates + report.quarantined + report.torn for report in reports) == 0
    assert sorted(stored_ids(store)) == sorted(ids)
