"""Processes that end abruptly, fork, or run out of disk: nothing that was captured is lost."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from slm_core.capture import drain_spool
from slm_core.dataset import why_unusable
from slm_core.records import IngestReport
from slm_core.store import Store, open_store

pytestmark = pytest.mark.integration

drain = partial(drain_spool, usable=why_unusable)

BEGIN = """
import json, os, resource, signal, sys, threading, time
from pathlib import Path
from slm_core.capture import CaptureSpec, WorkflowTracer

def tracer(**options):
    return WorkflowTracer(CaptureSpec(**options), spool_dir=sys.argv[1])

def capture(tracer, note="x"):
    return tracer.capture_call(
        agent_type="sub-agent", agent_name="booking", model_used="gpt-4o",
        system_prompt="be brief", user_query=f"{note} " * 50, assistant_response="a" * 300,
    )
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(f"sqlite:///{tmp_path}/slm.db") as store:
        yield store


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def start(spool: Path, code: str) -> subprocess.Popen[str]:
    program = BEGIN + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-c", program, str(spool)], stdout=subprocess.PIPE, text=True
    )


def run(spool: Path, code: str) -> str:
    with start(spool, code) as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return output


def stored_ids(store: Store) -> list[str]:
    return sorted(call.id for call in store.calls.select())


@pytest.mark.parametrize(
    "end",
    [
        "os.kill(os.getpid(), signal.SIGKILL)",
        "os.kill(os.getpid(), signal.SIGTERM)",
        "os._exit(0)",
        "sys.exit(0)",
    ],
)
def test_returned_calls_outlive_their_process(store: Store, spool: Path, end: str) -> None:
    with start(
        spool,
        f"""
        tracer = tracer()
        print(*[capture(tracer) for _ in range(1000)], flush=True)
        {end}
        """,
    ) as process:
        output, _ = process.communicate(timeout=60)
    report = drain(spool, store)
    assert (report.read, report.stored, report.torn, report.quarantined) == (1000, 1000, 0, 0)
    assert stored_ids(store) == sorted(output.split())
    assert list(spool.glob("*.seg")) == []


def test_kills_at_any_instant_lose_no_returned_call(store: Store, spool: Path) -> None:
    chance = random.Random(7)
    acknowledged: set[str] = set()
    reports: list[IngestReport] = []
    for _ in range(3):
        with start(
            spool,
            """
            tracer = tracer(segment_bytes=65536)
            while True:
                print(capture(tracer), flush=True)
            """,
        ) as process:
            assert process.stdout is not None
            acknowledged.add(process.stdout.readline().strip())
            time.sleep(chance.uniform(0.01, 0.1))
            reports.append(drain(spool, store))  # while it writes
            process.send_signal(signal.SIGKILL)
            # The last line may have been cut by the kill.
            acknowledged.update(line for line in process.stdout if len(line) == 33)
        reports.append(drain(spool, store))
    acknowledged = {line.strip() for line in acknowledged}
    ids = stored_ids(store)
    assert acknowledged <= set(ids)
    assert len(ids) - len(acknowledged) <= len(reports)  # one more per kill, not yet printed
    assert sum(report.stored for report in reports) == len(ids) > 50
    assert sum(report.duplicates + report.quarantined for report in reports) == 0
    assert list(spool.glob("*.seg")) == []


def test_a_killed_drain_goes_on_where_it_stopped(store: Store, spool: Path, tmp_path: Path) -> None:
    output = run(
        spool,
        """
        tracer = tracer(segment_bytes=262144)
        print(*[capture(tracer, str(n)) for n in range(3000)])
        """,
    )
    kills = 0
    for delay in (0.0, 0.05, 0.15):
        with start(
            spool,
            """
            from slm_core.capture import drain_spool
            from slm_core.dataset import why_unusable
            from slm_core.store import open_store
            with open_store(f"sqlite:///{Path(sys.argv[1]).parent}/slm.db") as store:
                print("ready", flush=True)
                drain_spool(sys.argv[1], store, usable=why_unusable)
            """,
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(delay)
            process.kill()
            process.wait()
            kills += process.returncode == -signal.SIGKILL
    assert kills > 1
    report = drain(spool, store)
    assert report.duplicates == 0
    assert stored_ids(store) == sorted(output.split())
    assert list(spool.glob("*.seg")) == []


def test_forked_children_write_their_own_segments(store: Store, spool: Path) -> None:
    output = run(
        spool,
        """
        tracer = tracer()
        print(*[capture(tracer) for _ in range(100)], flush=True)
        for number in range(4):
            if os.fork() == 0:
                ids = [capture(tracer) for _ in range(50)]
                health = tracer.health()
                assert health.written == 50, health
                os.write(1, (" ".join(ids) + "\\n").encode())
                os._exit(0)
            os.wait()
        print(*[capture(tracer) for _ in range(100)])
        """,
    )
    report = drain(spool, store)
    assert (report.stored, report.quarantined, report.duplicates) == (400, 0, 0)
    assert stored_ids(store) == sorted(output.split())


def test_a_child_that_outlives_its_parent_does_not_hold_its_segment(
    store: Store, spool: Path
) -> None:
    output = run(
        spool,
        """
        tracer = tracer()
        capture(tracer)
        child = os.fork()
        if child == 0:
            os.close(1)
            time.sleep(30)
        print(child, flush=True)
        os._exit(0)
        """,
    )
    try:
        assert drain(spool, store).stored == 1
        assert list(spool.glob("*.seg")) == []
    finally:
        os.kill(int(output), signal.SIGKILL)


def test_forking_amid_busy_threads_blocks_nobody(store: Store, spool: Path) -> None:
    output = run(
        spool,
        """
        tracer = tracer(segment_bytes=65536)
        stop = threading.Event()
        ids = []
        def work():
            while not stop.is_set():
                ids.append(capture(tracer))
        threads = [threading.Thread(target=work) for _ in range(3)]
        [thread.start() for thread in threads]
        for _ in range(8):
            if os.fork() == 0:
                signal.alarm(10)
                os.write(1, (capture(tracer) + "\\n").encode())
                os._exit(0)
            assert os.wait()[1] == 0
            time.sleep(0.005)
        stop.set()
        [thread.join() for thread in threads]
        print(*ids)
        """,
    )
    drain(spool, store)
    assert stored_ids(store) == sorted(output.split())


def test_open_streams_of_the_parent_are_not_the_childs(store: Store, spool: Path) -> None:
    run(
        spool,
        """
        from slm_core.capture.recording import Agent, Recording
        tracer = tracer()
        agent = Agent("sub-agent", "booking", None, None, {})
        request = {"model": "m", "messages": [{"role": "user", "content": "q"}], "stream": True}
        recording = Recording(tracer, agent, request)
        recording.note_answered()
        if os.fork() == 0:
            tracer.close()
            os._exit(0)
        os.wait()
        """,
    )
    report = drain(spool, store)
    assert (report.stored, report.unusable) == (1, {"stream left before its end": 1})


def test_a_full_disk_neither_kills_nor_raises(store: Store, spool: Path) -> None:
    output = run(
        spool,
        """
        tracer = tracer(segment_bytes=65536)
        kept = [capture(tracer) for _ in range(10)]
        resource.setrlimit(resource.RLIMIT_FSIZE, (32768, resource.RLIM_INFINITY))
        kept += [capture(tracer) for _ in range(500)]
        full = tracer.health()
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        time.sleep(0.3)
        kept += [capture(tracer) for _ in range(10)]
        assert all(kept[-10:])
        print(json.dumps({"ids": [i for i in kept if i], "full": full._asdict()}))
        """,
    )
    said = json.loads(output)
    full = said["full"]
    assert full["captured"] == 510 == full["written"] + full["dropped"]["disk is full"]
    assert 10 < full["written"] < 510
    assert full["errors"] == 0
    assert drain(spool, store).stored == len(said["ids"])
    assert stored_ids(store) == sorted(said["ids"])
