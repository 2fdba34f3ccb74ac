"""Start processes that outlive us, know them again, and stop exactly those.

A process is known by its id *and* its start time, so that a reused id is never taken for
it. Whatever it starts in turn is found by a marker in its environment, in whatever session
or process group it may be.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from slm_core.errors import StackError

MARKER = "SLM_STACK"
"""Variable that holds the stack's id in every process that it starts."""
_START_TOLERANCE_SECONDS = 2.0
"""The clock may be corrected between two readings of a start time."""
_KILLED_SECONDS = 5.0
"""What was killed is gone by then, unless it waits for a device."""


class ProcessId(NamedTuple):
    """Which process, beyond doubt."""

    pid: int
    started: float
    """Seconds since the epoch."""


def start(
    command: Sequence[str],
    log: Path,
    *,
    environment: Mapping[str, str],
    cwd: Path,
    user: str | None = None,
) -> ProcessId:
    """Start ``command`` in a session of its own, its output appended to ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=cwd,
            user=user,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    # It shall outlive us, so nobody awaits it here: keep Popen from complaining about that.
    process.returncode = 0
    return ProcessId(process.pid, psutil.Process(process.pid).create_time())


def wait_until(
    ready: Callable[[ProcessId], bool],
    process: ProcessId,
    log: Path,
    *,
    what: str,
    timeout_seconds: float,
) -> None:
    """Return once ``ready(process)``.

    Raises:
        StackError: the process ended, or was not ready in time; holds the end of its log.
    """
    deadline = time.monotonic() + timeout_seconds
    while not ready(process):
        if not is_alive(process):
            raise StackError(f"{what} ended while starting. See {log}, which ends:\n{_tail(log)}")
        if time.monotonic() > deadline:
            raise StackError(
                f"{what} was not ready within {timeout_seconds:.0f} s. "
                f"See {log}, which ends:\n{_tail(log)}"
            )
        time.sleep(0.1)


def is_alive(process: ProcessId) -> bool:
    """Whether this very process still runs."""
    return _find(process) is not None


def stop(process: ProcessId, *, by: signal.Signals, grace_seconds: float) -> None:
    """Ask the process to end, and kill it when it has not after ``grace_seconds``."""
    found = _find(process)
    if found is not None:
        _end([found], by, grace_seconds)


def stop_children(parent: ProcessId, *, grace_seconds: float) -> None:
    """Ask what the process has started to end, and wait for it.

    For a parent that would kill them. It lives on meanwhile and may start more, so it is
    looked at again and again. What has not ended after ``grace_seconds`` is left running.
    """
    asked: set[psutil.Process] = set()
    deadline = time.monotonic() + grace_seconds
    while (found := _find(parent)) is not None and time.monotonic() < deadline:
        children = _living_children(found)
        if not children:
            break
        for child in children - asked:
            _send(child, signal.SIGTERM)
        asked |= children
        time.sleep(0.1)


def sweep(stack_id: str, *, grace_seconds: float) -> int:
    """End whatever still carries the stack's marker; return how many processes that were."""
    marked = [p for p in psutil.process_iter() if p.pid != os.getpid() and _marker(p) == stack_id]
    _end(marked, signal.SIGTERM, grace_seconds)
    return len(marked)


def _find(process: ProcessId) -> psutil.Process | None:
    try:
        found = psutil.Process(process.pid)
        if abs(found.create_time() - process.started) >= _START_TOLERANCE_SECONDS:
            return None
    except psutil.NoSuchProcess:
        return None
    return found if _lives(found) else None


def _living_children(process: psutil.Process) -> set[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return {child for child in process.children() if _lives(child)}
    return set()


def _end(processes: Iterable[psutil.Process], by: signal.Signals, grace_seconds: float) -> None:
    processes = list(processes)
    for process in processes:
        _send(process, by)
    stubborn = _wait(processes, grace_seconds)
    for process in stubborn:
        _send(process, signal.SIGKILL)
    _wait(stubborn, _KILLED_SECONDS)


def _wait(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Wait until the processes have ended; return those that have not in that time.

    One that nobody has reaped has ended: its parent may be busy, and a container's first process
    often reaps none. ``psutil.wait_procs`` would wait for that too.
    """
    deadline = time.monotonic() + seconds
    while left := [process for process in processes if _lives(process)]:
        if time.monotonic() >= deadline:
            break
        time.sleep(0.05)
    return left


def _lives(process: psutil.Process) -> bool:
    try:
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            return True
    except psutil.NoSuchProcess:
        return False
    _reap(process.pid)
    return False


def _reap(pid: int) -> None:
    """Let go of a child of ours that has ended.

    Its id stays taken until then, and PostgreSQL would believe that it still runs.
    """
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _send(process: psutil.Process, by: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(by)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


def _marker(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(MARKER)
    except psutil.Error:  # gone, or somebody else's
        return None
