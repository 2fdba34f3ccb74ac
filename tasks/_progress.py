"""Progress of one long step, where people look: a bar in the terminal, artifacts in the UI.

A progress artifact and, where the step has one, a page are updated in place. A thread of their
own does it: a server that is slow or away delays no work and ends none. The pauses between
updates grow with the time that the step takes, since the server keeps an event for each: a step
of ten hours makes about four hundred.
"""

from __future__ import annotations

import contextvars
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol, cast
from uuid import UUID

from prefect import get_client
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.context import FlowRunContext, TaskRunContext

from slm_core.report.words import duration
from tasks._artifacts import showing

log = logging.getLogger(__name__)

_LEAST_PAUSE_SECONDS = 2.0
_PAUSE_SHARE = 0.02
"""Of the time that the step has taken: the pause between two updates."""
_PAGE_EVERY = 3
"""Updates of the progress to one of the page, which is larger."""
_LAST_SECONDS = 5.0
"""How long the end of a step waits for its last update."""
_RATE_SECONDS = 60.0
"""The rate is that of the last minute."""


class OnProgress(Protocol):
    """Called with work done, work in all and what it is."""

    def __call__(self, done: int, total: int, what: str) -> None: ...


class LivePage(NamedTuple):
    """A page that is written anew while the step goes on."""

    key: str
    description: str
    render: Callable[[], str]
    """Returns it as Markdown; called in another thread."""


@contextmanager
def progress(what: str, page: LivePage | None = None) -> Iterator[OnProgress]:
    """Show the progress of ``what``, and ``page``, until the block ends."""
    shown = _Shown(what, page)
    try:
        with _terminal_bar(what, shown) as on_progress:
            yield on_progress
    finally:
        shown.close()


@contextmanager
def _terminal_bar(what: str, shown: _Shown) -> Iterator[OnProgress]:
    """Add a bar where stderr is a terminal."""
    if not sys.stderr.isatty():
        yield shown
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
            shown(done, total, what)

        yield show


class Pace:
    """Work done over time, to say how fast it goes and how long the rest takes."""

    def __init__(self, window_seconds: float = _RATE_SECONDS) -> None:
        self._window = window_seconds
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, now: float, done: int) -> None:
        """Take in that ``done`` were done at ``now``; fewer than before begins anew."""
        if self._seen and done < self._seen[-1][1]:
            self._seen.clear()
        self._seen.append((now, done))
        # The two newest stay, however slow the work is.
        while len(self._seen) > 2 and now - self._seen[1][0] >= self._window:
            self._seen.popleft()

    def per_second(self) -> float | None:
        """Return the rate; None before it is known."""
        if len(self._seen) < 2:
            return None
        (began, first), (ended, last) = self._seen[0], self._seen[-1]
        return (last - first) / (ended - began) if ended > began and last > first else None

    def words(self, total: int, what: str) -> str:
        """Return all of it in one line: ``40 of 120, 2.1/s, about 38 s left, loss 0.41``."""
        done = self._seen[-1][1] if self._seen else 0
        said = [f"{done:,} of {total:,}"]
        rate = self.per_second()
        if rate is not None and done < total:
            said.append(f"{rate:,.1f}/s" if rate >= 0.1 else f"{rate * 60:,.1f}/min")
            said.append(f"about {duration((total - done) / rate)} left")
        return ", ".join([*said, what] if what else said)


class _Shown:
    """The artifacts of the current run; outside of a run only log lines."""

    def __init__(self, what: str, page: LivePage | None) -> None:
        self._what, self._page = what, page
        self._pace = Pace()
        self._newest: tuple[int, int, str] | None = None
        self._tenth = -1
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._ids: dict[str, UUID] = {}
        self._thread: threading.Thread | None = None
        if FlowRunContext.get() is not None or TaskRunContext.get() is not None:
            # The thread shall know which run it speaks for.
            run = contextvars.copy_context().run
            self._thread = threading.Thread(
                target=run, args=(self._publish,), name=f"progress of {what}", daemon=True
            )
            self._thread.start()

    def __call__(self, done: int, total: int, what: str) -> None:
        with self._lock:
            self._pace.note(time.monotonic(), done)
            self._newest = (done, total, what)
        tenth = int(10 * done / total) if total else 0
        if tenth != self._tenth:
            self._tenth = tenth
            log.info("%s %d/%d %s", self._what, done, total, what)

    def close(self) -> None:
        """Show the last state, if the server takes it soon."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(_LAST_SECONDS)

    def _publish(self) -> None:
        began, updates = time.monotonic(), 0
        shown: tuple[int, int, str] | None = None
        while True:
            last = self._ended.is_set()
            with self._lock:
                newest = self._newest
                words = self._pace.words(newest[1], newest[2]) if newest else ""
            if newest is not None and newest != shown:
                with showing(f"progress of {self._what}"):
                    self._show_progress(newest, words)
                shown = newest
            if self._page is not None and (last or updates % _PAGE_EVERY == 0):
                with showing(f"page of {self._what}"):
                    self._show_page(self._page)
            updates += 1
            if last:
                return
            pause = max(_LEAST_PAUSE_SECONDS, _PAUSE_SHARE * (time.monotonic() - began))
            self._ended.wait(pause)

    def _show_progress(self, newest: tuple[int, int, str], words: str) -> None:
        done, total, _ = newest
        share = 100.0 * done / total if total else 0.0
        said = f"{self._what}: {words}"
        if "progress" in self._ids:
            update_progress_artifact(self._ids["progress"], share, description=said)
        else:
            made = create_progress_artifact(share, description=said)
            self._ids["progress"] = cast("UUID", made)

    def _show_page(self, page: LivePage) -> None:
        text = page.render()
        if "page" in self._ids:
            with get_client(sync_client=True) as client:
                client.update_artifact(self._ids["page"], ArtifactUpdate(data=text))
        else:
            made = create_markdown_artifact(text, key=page.key, description=page.description)
            self._ids["page"] = cast("UUID", made)
