"""What a worker leaves behind when it fails: an error file per rank, and the end of the log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from slm_core import errors
from slm_core.errors import SlmError, TrainingError
from slm_core.training.durable import write_json

_TAIL_LINES = 15
_TAIL_BYTES = 16_384
_CRASH_CHARACTERS = 2_000


def write_error(path: Path, error: BaseException) -> None:
    """Leave ``error`` for the parent."""
    if isinstance(error, SlmError):
        context = {key: _plain(value) for key, value in error.context.items()}
        said = {"type": type(error).__name__, "message": error.message, "context": context}
    else:
        said = {"type": type(error).__name__, "message": str(error)[:_CRASH_CHARACTERS]}
    write_json(path, said)


def read_error(path: Path) -> SlmError | None:
    """Return the typed error that a worker left, or None."""
    said = _read(path)
    if said is None or "context" not in said:
        return None
    cls = getattr(errors, said["type"], TrainingError)
    return cls(said["message"], **said["context"])


def read_crash(path: Path) -> str:
    """Return type and message of any other exception that a worker left, or nothing."""
    said = _read(path)
    return "" if said is None or "context" in said else f"{said['type']}: {said['message']}"


def read_tail(log: Path, begin: int) -> str:
    """Return the last lines of ``log`` that were written after its first ``begin`` bytes."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        end = file.seek(0, 2)
        file.seek(max(begin, end - _TAIL_BYTES))
        text = file.read().decode("utf-8", "replace")
    return "\n".join(text.splitlines()[-_TAIL_LINES:])


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        # Absent, or cut short by a full disk: the exit code has to do.
        return None


def _plain(value: object) -> object:
    """Return ``value`` if JSON can say it, else its text."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return repr(value)
    return value
