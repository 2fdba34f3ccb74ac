"""Keeps one child at the driver library and tells what it says, or that it has gone silent.

Only the child calls NVML. Its silence is the sign of a driver that does not return: it is then
killed, or left behind where that is not possible, and a second child is asked before the driver
is called hung, unless the first could not even be killed. A silence that the driver has worked
since is forgotten. After ``stop_for_good`` nothing goes into the driver any more.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

from slm_core.health.bounded import state_letter
from slm_core.health.host import HostPaths

_KILL_SECONDS = 1.0
_LOOK_SECONDS = 0.1
_AGAIN_SECONDS = 30.0
"""Before a child that ended by itself, such as one that found no library, is tried again."""
_READ_BYTES = 1 << 16
_STRIKES = 2
_WORKED_SECONDS = 30.0
"""A child that answers for longer shows that the driver got over the silence before it."""
_START_SECONDS = 60.0
"""For Python to start on a busy machine; no call has gone into the driver by then."""


class NvmlWatch:
    """Runs in one thread of the watchdog; calls back with each line and with a hang."""

    def __init__(
        self,
        host: HostPaths,
        *,
        pause_seconds: float,
        deadline_seconds: float,
        on_line: Callable[[dict[str, Any]], None],
        on_hang: Callable[[str, float, bool], None],
    ) -> None:
        """``on_hang`` gets what was being asked, when it last spoke, and if it is unkillable."""
        self._argv = [host.python, "-m", "slm_core.health.nvml_events", str(pause_seconds)]
        self._deadline_seconds = deadline_seconds
        self._on_line = on_line
        self._on_hang = on_hang
        self._stopped = threading.Event()
        self._abandoned: list[subprocess.Popen[bytes]] = []

    def stop_for_good(self) -> None:
        """Let no further call go into the driver."""
        self._stopped.set()

    def run(self) -> None:
        """Watch until ``stop_for_good``, or until the driver is found to hang."""
        strikes = 0
        last_life = time.monotonic()
        while not self._stopped.is_set():
            child = self._start()
            began = time.monotonic()
            hung_at, spoke = self._listen(child)
            if spoke is not None:
                last_life = spoke
                if spoke - began > _WORKED_SECONDS:
                    strikes = 0
            killed = self._end(child)
            if self._stopped.is_set():
                return
            if hung_at is None:
                strikes = 0
                self._stopped.wait(_AGAIN_SECONDS)
                continue
            strikes += 1
            if strikes >= _STRIKES or not killed:
                self._on_hang(hung_at, last_life, not killed)
                return

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _listen(self, child: subprocess.Popen[bytes]) -> tuple[str | None, float | None]:
        """Return what the child was doing when it fell silent, or None if it ended or we did.

        The second value is when it last answered, if it did: neither its start nor a line that
        says "doing" is an answer.
        """
        assert child.stdout is not None
        output = child.stdout.fileno()
        os.set_blocking(output, False)
        answered: float | None = None
        heard = began = time.monotonic()
        doing, rest = "", b""
        while not self._stopped.is_set():
            if select.select([output], [], [], _LOOK_SECONDS)[0]:
                added = os.read(output, _READ_BYTES)
                if not added:
                    return None, answered
                heard = time.monotonic()
                *lines, rest = (rest + added).split(b"\n")
                for line in filter(None, map(_object, lines)):
                    if "doing" in line:
                        doing = str(line["doing"])
                    else:
                        answered = heard
                        self._on_line(line)
            elif not doing:
                if time.monotonic() - began > _START_SECONDS:
                    return None, answered
            elif time.monotonic() - heard > self._deadline_seconds:
                state = state_letter(child.pid)
                return f"{doing} (process state {state})", answered
        return None, answered

    def _end(self, child: subprocess.Popen[bytes]) -> bool:
        """Kill the child; return whether it is gone. Never waits longer than a second."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        assert child.stdout is not None
        child.stdout.close()
        deadline = time.monotonic() + _KILL_SECONDS
        while child.poll() is None:
            if time.monotonic() >= deadline:
                self._abandoned.append(child)
                return False
            time.sleep(0.01)
        return True


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:  # something that the library itself printed
        return None
    return value if isinstance(value, dict) else None
