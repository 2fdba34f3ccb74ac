"""Processes are known by id and start time, and only those are stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from slm_core.errors import StackError
from slm_core.local_stack.processes import (
    MARKER,
    ProcessId,
    is_alive,
    start,
    stop,
    sweep,
    wait_until,
)

SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[ProcessId]:
    process = start(SLEEP, tmp_path / "log", environment={}, cwd=tmp_path)
    yield process
    stop(process, by=signal.SIGKILL, grace_seconds=5)


def test_a_started_process_leads_a_session_of_its_own_and_can_be_stopped(
    sleeper: ProcessId,
) -> None:
    assert is_alive(sleeper)
    assert os.getsid(sleeper.pid) == sleeper.pid
    stop(sleeper, by=signal.SIGTERM, grace_seconds=5)
    assert not is_alive(sleeper)


def test_another_process_with_the_same_id_is_not_touched(sleeper: ProcessId) -> None:
    earlier = ProcessId(sleeper.pid, sleeper.started - 3600)
    assert not is_alive(earlier)
    stop(earlier, by=signal.SIGKILL, grace_seconds=1)
    assert is_alive(sleeper)


def test_a_process_that_ignores_the_signal_is_killed(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up'); time.sleep(60)"
    log = tmp_path / "log"
    process = start([sys.executable, "-S", "-u", "-c", code], log, environment={}, cwd=tmp_path)
    wait_until(lambda _: "up" in log.read_text(), process, log, what="it", timeout_seconds=10)
    stop(process, by=signal.SIGTERM, grace_seconds=0.2)
    assert not is_alive(process)


def test_one_that_its_parent_does_not_reap_is_not_waited_for(tmp_path: Path) -> None:
    code = f"import subprocess, time; print(subprocess.Popen({SLEEP!r}).pid); time.sleep(60)"
    log = tmp_path / "parent"
    parent = start([sys.executable, "-u", "-c", code], log, environment={}, cwd=tmp_path)
    wait_until(lambda _: "\n" in log.read_text(), parent, log, what="it", timeout_seconds=10)
    child = psutil.Process(int(log.read_text()))
    began = time.monotonic()
    stop(ProcessId(child.pid, child.create_time()), by=signal.SIGTERM, grace_seconds=20)
    assert time.monotonic() - began < 5
    assert child.status() == psutil.STATUS_ZOMBIE
    stop(parent, by=signal.SIGKILL, grace_seconds=5)


def test_a_sweep_ends_marked_processes_in_any_session_and_no_others(
    tmp_path: Path, sleeper: ProcessId
) -> None:
    stack_id = uuid.uuid4().hex
    spawn = f"import subprocess; subprocess.Popen({SLEEP!r}, start_new_session=True)"
    subprocess.run([sys.executable, "-c", spawn], env={MARKER: stack_id}, check=True)
    assert sweep(stack_id, grace_seconds=5) == 1
    assert sweep(stack_id, grace_seconds=5) == 0
    assert is_alive(sleeper)


def test_a_process_that_ends_while_starting_shows_its_last_words(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-S", "-c", "import sys; sys.exit('port in use')"]
    process = start(command, log, environment={}, cwd=tmp_path)
    with pytest.raises(StackError, match=r"server ended while starting(.|\n)*port in use"):
        wait_until(lambda _: False, process, log, what="server", timeout_seconds=10)


def test_waiting_gives_up_in_time(tmp_path: Path, sleeper: ProcessId) -> None:
    begun = time.monotonic()
    with pytest.raises(StackError, match="not ready within"):
        wait_until(lambda _: False, sleeper, tmp_path / "log", what="server", timeout_seconds=0.2)
    assert time.monotonic() - begun < 5


def test_a_killed_child_leaves_nothing_that_looks_alive(sleeper: ProcessId) -> None:
    """PostgreSQL asks the kernel for the id in its lock file, and a zombie answers."""
    os.kill(sleeper.pid, signal.SIGKILL)
    while is_alive(sleeper):
        time.sleep(0.01)
    with pytest.raises(ProcessLookupError):
        os.kill(sleeper.pid, 0)
