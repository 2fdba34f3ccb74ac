"""Run the worker as a process group of its own, and never leave one behind.

Whatever makes the caller leave (a signal, Ctrl-C, a failing callback) reaches the worker
as SIGTERM: it saves a checkpoint at the next step and ends. A caller that is killed takes
the worker along: the kernel sees to it (``worker.py`` asks for that).
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Never

from slm_core.training.events import EventFile, StepEvent
from slm_core.training.run_folder import RunFolder

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
# CPU threads that wait for each other sleep instead of spinning. Beside other busy processes
# spinning made the training of a small model 5 to 8 times slower.
_POLITE = "OMP_WAIT_POLICY=passive"
# Prefect gives a cancelled flow run 30 seconds; stay below.
_STOP_GRACE_SECONDS = 25.0


def run_worker(
    run: RunFolder, lock: int, events: EventFile, on_event: Callable[[StepEvent], None]
) -> int:
    """Start the worker, pass on its events, and return its exit code.

    Negative codes are signals. On any exception, ``on_event``'s own included, the worker
    is asked to stop, waited for, and killed if need be; then the exception goes on.
    """
    command = ["env", _POLITE, sys.executable, "-m", "slm_core.training.worker", str(run.path)]
    with run.log.open("ab") as output, _sigterm_unwinds():
        worker = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Ctrl-C in a terminal reaches only us; we decide what the worker is told.
            process_group=0,
            # The lock lives as long as either process does.
            pass_fds=(lock,),
        )
        log.info("training worker started pid=%d run=%s", worker.pid, run.path)
        try:
            while True:
                code = _wait(worker, _POLL_SECONDS)
                for event in events.read_new():
                    on_event(event)
                if code is not None:
                    return code
        finally:
            _stop(worker)


def _stop(worker: subprocess.Popen[bytes]) -> None:
    """Ask a living worker to save and end; kill it when it does not."""
    if worker.poll() is not None:
        return
    log.info("training worker asked to stop pid=%d", worker.pid)
    try:
        _signal_group(worker, signal.SIGTERM)
        _wait(worker, _STOP_GRACE_SECONDS)
    finally:
        if worker.poll() is None:
            log.warning("training worker killed pid=%d", worker.pid)
            _signal_group(worker, signal.SIGKILL)
        worker.wait()


def _wait(worker: subprocess.Popen[bytes], seconds: float) -> int | None:
    try:
        return worker.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None


def _signal_group(worker: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(worker.pid, number)
    except ProcessLookupError:
        log.debug("training worker was gone pid=%d", worker.pid)


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """Let a SIGTERM that would end this process at once unwind the stack instead.

    A handler that the caller installed, such as Prefect's, stays; so does everything when
    this is not the main thread, where Python allows no handlers.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def leave(number: int, frame: FrameType | None) -> Never:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
