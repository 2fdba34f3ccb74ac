"""Why a worker ended: from its exit code and last words to a name, and to an error.

The only place where a process that ended is turned into an error of ours.
"""

from __future__ import annotations

import json
import signal
from enum import IntEnum
from pathlib import Path

from slm_core import errors
from slm_core.errors import SlmError, TrainingError, WorkerDied
from slm_core.records import Fault
from slm_core.training.durable import write_json

_LOG_TAIL_LINES = 15


class ExitCode(IntEnum):
    """How a worker ends on its own account; any other code is a crash."""

    DONE = 0
    REFUSED = 70
    """A typed error; it is in ``error.json``."""
    INTERRUPTED = 75
    """A signal asked it to stop. A checkpoint of the last step is saved."""


def write_error(path: Path, error: SlmError) -> None:
    """Leave ``error`` for the parent."""
    context = {key: _plain(value) for key, value in error.context.items()}
    write_json(path, {"type": type(error).__name__, "message": error.message, "context": context})


def read_error(path: Path) -> SlmError | None:
    """Return the error that the worker left, or None."""
    if not path.is_file():
        return None
    said = json.loads(path.read_text("utf-8"))
    cls = getattr(errors, said["type"], TrainingError)
    return cls(said["message"], **said["context"])


def error_of(exit_code: int, refusal: SlmError | None, last_step: int, log: Path) -> SlmError:
    """Return the error that a worker's end means to the caller of ``train``."""
    if exit_code == ExitCode.REFUSED and refusal is not None:
        return refusal
    if exit_code == ExitCode.INTERRUPTED:
        how = "was stopped by a signal and saved a checkpoint"
    elif exit_code < 0:
        how = f"was killed by {_signal_name(-exit_code)}"
        if -exit_code == signal.SIGKILL:
            how += " (often the host running out of memory)"
    else:
        how = "crashed"
    return WorkerDied(
        f"The training worker {how}. Train again: the run resumes from its newest checkpoint.",
        exit_code=exit_code,
        last_step=last_step,
        log=str(log),
        log_tail=_tail(log),
    )


def fault_of(error: SlmError, last_step: int, exit_code: int) -> Fault:
    """Return the record of a worker's end."""
    kind = _kind(error, exit_code)
    return Fault(kind=kind, message=error.message, step=last_step, exit_code=exit_code)


def _kind(error: SlmError, exit_code: int) -> str:
    if exit_code == ExitCode.INTERRUPTED:
        return "interrupted"
    if exit_code < 0:
        return "worker_killed"
    if isinstance(error, errors.TrainingDiverged):
        return "diverged"
    return "refused" if exit_code == ExitCode.REFUSED else "worker_crashed"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _tail(log: Path) -> str:
    if not log.is_file():
        return ""
    return "\n".join(log.read_text("utf-8", "replace").splitlines()[-_LOG_TAIL_LINES:])


def _plain(value: object) -> object:
    """Return ``value`` if JSON can say it, else its text."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return repr(value)
    return value
