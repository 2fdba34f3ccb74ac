"""Progress of one long step, where people look: a bar in the terminal, an artifact in the UI."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext, TaskRunContext

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_UPDATES = 2.0


class OnProgress(Protocol):
    """Called with work done, work in all and what it is."""

    def __call__(self, done: int, total: int, what: str) -> None: ...


@contextmanager
def progress(what: str) -> Iterator[OnProgress]:
    """Show the progress of ``what`` until the block ends."""
    artifact = _Artifact(what)
    if not sys.stderr.isatty():
        yield artifact
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        line = bar.add_task(what, total=None, note="")

        def show(done: int, total: int, what: str) -> None:
            bar.update(line, completed=done, total=total, note=what)
            artifact(done, total, what)

        yield show


class _Artifact:
    """A progress artifact of the current run, updated now and then; outside a run, a log line."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._id: UUID | None = None
        self._next = 0.0
        self._tenth = -1
        self._in_run = FlowRunContext.get() is not None or TaskRunContext.get() is not None

    def __call__(self, done: int, total: int, what: str) -> None:
        now = time.monotonic()
        if now < self._next and done < total:
            return
        self._next = now + _SECONDS_BETWEEN_UPDATES
        share = 100.0 * done / total if total else 0.0
        tenth = int(share / 10)
        if tenth != self._tenth:
            self._tenth = tenth
            log.info("%s %d/%d %s", self._what, done, total, what)
        if not self._in_run:
            return
        try:
            self._show(share)
        except Exception as error:
            # A dashboard that is away for a moment must not end a training.
            log.warning("progress not shown what=%s error=%s", self._what, type(error).__name__)

    def _show(self, share: float) -> None:
        if self._id is None:
            self._id = cast("UUID", create_progress_artifact(share, description=self._what))
        else:
            update_progress_artifact(self._id, share)
