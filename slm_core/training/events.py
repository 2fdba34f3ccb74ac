"""``events.jsonl``: one line per logged step, written by the worker, followed by the parent."""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import ValidationError

from slm_core.records import LossPoint
from slm_core.training.durable import replace_file

log = logging.getLogger(__name__)

_TAIL_BYTES = 65_536
"""More than a few hundred lines have."""


class StepEvent(LossPoint):
    """A logged step, and how far the run is."""

    total_steps: int
    eta_seconds: float
    """Expected time to the last step."""
    gpu_bytes: int | None = None
    """Most GPU memory that the first worker held so far; None on a CPU."""

    def point(self) -> LossPoint:
        """Return the part that stays in the adapter's record."""
        return LossPoint(**self.model_dump(include=set(LossPoint.model_fields)))


class EventFile:
    """Reads the events that were added since the last look; knows half-written lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read_new(self) -> list[StepEvent]:
        """Return the whole lines added since the last call."""
        if not self._path.is_file():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            added = file.read()
        whole = added[: added.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [event for line in whole.splitlines() if (event := _parse(line))]


def read_events(path: Path) -> list[StepEvent]:
    """Return every event of the file."""
    return EventFile(path).read_new()


def read_last(path: Path) -> StepEvent | None:
    """Return the newest event of the file, read from its end; None when there is none.

    Lines that are cut or unreadable are passed over: a worker that dies may leave one.
    """
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            tail = file.read()
    except FileNotFoundError:
        return None
    for raw in reversed(tail[: tail.rfind(b"\n") + 1].splitlines()):
        try:
            return StepEvent.model_validate_json(raw)
        except ValidationError:  # not logged: whoever only looks would say it at each look
            continue
    return None


def forget_after(path: Path, step: int) -> None:
    """Remove the events of later steps: they will be taken, and logged, again."""
    kept = [event for event in read_events(path) if event.step <= step]
    replace_file(path, b"".join(line(event) for event in kept))


def line(event: StepEvent) -> bytes:
    """Return the event as a line of the file."""
    return event.model_dump_json().encode() + b"\n"


def _parse(raw: bytes) -> StepEvent | None:
    try:
        return StepEvent.model_validate_json(raw)
    except ValidationError:
        log.warning("unreadable event skipped bytes=%d", len(raw))
        return None
