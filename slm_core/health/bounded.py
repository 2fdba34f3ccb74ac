"""Run a probe that may hang in the driver, and leave it behind if it cannot be killed.

A process inside a broken driver call may be in state D: no signal ends it, and whoever waits
for it hangs too (``subprocess.run(timeout=...)`` does: it kills, then waits without a bound).
Here output goes to files and not through pipes, the child leads a session of its own, nothing
ever blocks on it, and after a last grace it is abandoned and reported as unkillable.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

_POLL_SECONDS = 0.01
_MOST_BYTES = 8 << 20
NOT_STARTED = 127
"""Code of a program that could not be started, as shells have it."""

_abandoned: list[subprocess.Popen[bytes]] = []
"""Children that could not be killed; asked again at each run, so that none stays a zombie."""


class Outcome(NamedTuple):
    """How a probe ended."""

    code: int | None
    """Exit status; minus the signal's number if one ended it; None if we had to end it."""
    stdout: str
    """What it had written by then, also when it hung."""
    stderr: str
    seconds: float
    hung: bool
    """It was still running at its deadline."""
    unkillable: bool
    """It outlived SIGKILL too: the driver holds it."""
    state: str | None
    """State letter at the deadline, such as ``D`` or ``S``; None if it ended in time."""


def run(
    argv: Sequence[str],
    *,
    deadline_seconds: float,
    env: Mapping[str, str] | None = None,
    grace_seconds: float = 0.5,
) -> Outcome:
    """Run ``argv`` for at most ``deadline_seconds``, then kill its whole process group.

    Returns within the deadline and the grace, whatever the child does. A program that is
    missing or no program ends with code ``NOT_STARTED``.

    Args:
        argv: program and arguments.
        deadline_seconds: when to give up.
        env: variables on top of the inherited ones.
        grace_seconds: how long a killed child may take to go away.
    """
    _reap_abandoned()
    if env:
        argv = ["env", *(f"{name}={value}" for name, value in env.items()), *argv]
    began = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        except OSError as error:
            words = f"{argv[0]}: {error.strerror}"
            return Outcome(NOT_STARTED, "", words, time.monotonic() - began, False, False, None)
        state, hung, unkillable = None, False, False
        try:
            ended = _ends_within(process, began + deadline_seconds)
        except BaseException:  # Ctrl-C: the child must not outlive us
            _end(process, grace_seconds)
            raise
        if not ended:
            hung, state = True, state_letter(process.pid)
            unkillable = not _end(process, grace_seconds)
        code = None if hung else process.returncode
        seconds = time.monotonic() - began
        return Outcome(code, _text(out), _text(err), seconds, hung, unkillable, state)


def state_letter(pid: int) -> str | None:
    """Return the state of a process (``R S D T Z`` ...), or None if there is none."""
    try:
        # The name in brackets may itself hold spaces and brackets.
        return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return None


def _end(process: subprocess.Popen[bytes], grace_seconds: float) -> bool:
    """Kill the child and its group; return whether it is gone. Never waits longer than told."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if _ends_within(process, time.monotonic() + grace_seconds):
        return True
    # Kept, or its destructor would complain; and never waited for.
    _abandoned.append(process)
    return False


def _ends_within(process: subprocess.Popen[bytes], deadline: float) -> bool:
    while process.poll() is None:
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _reap_abandoned() -> None:
    for process in list(_abandoned):
        if process.poll() is not None:
            with contextlib.suppress(ValueError):  # another thread was faster
                _abandoned.remove(process)


def _text(file: IO[bytes]) -> str:
    # pread: the child shares the file's offset, and an abandoned one may still write.
    return os.pread(file.fileno(), _MOST_BYTES, 0).decode("utf-8", "replace")
