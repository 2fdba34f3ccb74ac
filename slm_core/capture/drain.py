"""Moves what the spool folder holds into the store.

Calls and the place up to which a segment was read are committed together, so a drain can be
killed at any moment and the next one goes on there. A segment is removed only after that, and
only when its writer is gone. What cannot be read goes to quarantine with its reason; a segment
with damage is kept, too, in ``damaged/``.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import ValidationError

from slm_core.capture.encoding import decode
from slm_core.capture.imports import read_line
from slm_core.capture.segment import SUFFIX, read_frames, take_over, torn_bytes
from slm_core.errors import CaptureError, StoreError, StoreUnavailable
from slm_core.records import Call, IngestReport, Quarantined

if TYPE_CHECKING:
    from slm_core.store import Store

log = logging.getLogger(__name__)

BATCH = 1000
"""Calls per transaction."""
_LONGEST_RAW = 64 * 1024
_ABANDONED_SECONDS = 60


class Row(NamedTuple):
    """One thing found in the spool: a call, or the reason why it is none."""

    source: str
    raw: bytes
    found: Call | str


def drain_spool(
    spool_dir: Path | str,
    store: Store,
    *,
    usable: Callable[[Call], str | None],
    on_progress: Callable[[int, int, str], None] | None = None,
) -> IngestReport:
    """Move every captured call of ``spool_dir`` into ``store`` and return the counts.

    Reads the segments of all processes, living ones too, and then the files ``*.jsonl`` that
    others put there (write under another name, then rename); these go to ``done/`` afterwards.
    One drain runs at a time; a second one waits for the first. ``usable`` returns why a call may
    not train, or None; the store keeps what it says for good, so give the filter that datasets
    are built with, ``slm_core.dataset.why_unusable``. ``on_progress`` is told (files done, files
    in all, file name).

    Raises:
        StoreUnavailable: the database does not answer. Nothing is lost; drain again.
        CaptureError: a file of the folder cannot be read or moved.
    """
    folder = Path(spool_dir)
    drain = _Drain(store, usable)
    try:
        with _alone(folder):
            _sweep(folder)
            segments, imports = sorted(folder.glob(f"*{SUFFIX}")), sorted(folder.glob("*.jsonl"))
            files = [*segments, *imports]
            for done, path in enumerate(files):
                if on_progress is not None:
                    on_progress(done, len(files), path.name)
                (drain.segment if path.suffix == SUFFIX else drain.import_file)(path)
    except OSError as error:
        raise CaptureError(f"The spool folder cannot be drained: {error}.") from error
    if on_progress is not None:
        on_progress(len(files), len(files), "")
    return drain.report()


class _Drain:
    """One pass over a spool folder."""

    def __init__(self, store: Store, usable: Callable[[Call], str | None]) -> None:
        self._store = store
        self._usable = usable
        self._counts: Counter[str] = Counter()
        self._unusable: Counter[str] = Counter()

    def segment(self, path: Path) -> None:
        """Read a segment from where the last drain stopped; remove it if its writer is gone."""
        try:
            lock = take_over(path)
        except FileNotFoundError:
            return
        try:
            offset = self._store.calls.spool_offset(path.name)
            frames = read_frames(path, offset, finished=lock is not None)
            while batch := list(islice(frames, BATCH)):
                offset = batch[-1].end
                rows = [
                    Row(f"{path.name}:{frame.start}", frame.body, frame.damage or _call(frame.body))
                    for frame in batch
                ]
                if any(frame.damage for frame in batch):
                    _keep(path)
                self._commit(path, rows, spool=(path.name, offset))
            if lock is not None:
                self._count_torn(path, offset)
                path.unlink()
        finally:
            if lock is not None:
                os.close(lock)

    def import_file(self, path: Path) -> None:
        """Read a file of JSON lines and move it to ``done/``."""
        with path.open("rb") as file:
            rows = _line_rows(path.name, file)
            while batch := list(islice(rows, BATCH)):
                self._commit(path, batch)
        _move(path, path.parent / "done")

    def report(self) -> IngestReport:
        """Return the counts of this pass."""
        return IngestReport(
            read=self._counts["read"],
            stored=self._counts["stored"],
            duplicates=self._counts["duplicates"],
            quarantined=self._counts["quarantined"],
            torn=self._counts["torn"],
            usable=self._counts["usable"],
            unusable=dict(self._unusable),
            waiting=self._store.calls.waiting(),
        )

    def _commit(self, path: Path, rows: list[Row], *, spool: tuple[str, int] | None = None) -> None:
        # Quarantine comes first: should we die in between, adding a row again changes nothing.
        self._counts["read"] += len(rows)
        self._quarantine(path, [(row, row.found) for row in rows if isinstance(row.found, str)])
        calls = [(row, row.found) for row in rows if isinstance(row.found, Call)]
        try:
            self._add([call for _, call in calls], spool)
        except StoreUnavailable:
            raise
        except StoreError:
            self._store.calls.count()  # a database that is broken altogether says so here
            self._quarantine(path, self._add_apart(calls))
            self._add([], spool)

    def _add_apart(self, calls: list[tuple[Row, Call]]) -> list[tuple[Row, str]]:
        """Add what a database can hold, by halving; return the other calls with the reason."""
        try:
            self._add([call for _, call in calls], None)
        except StoreUnavailable:
            raise
        except StoreError as error:
            if len(calls) == 1:
                return [(calls[0][0], error.message)]
            middle = len(calls) // 2
            return self._add_apart(calls[:middle]) + self._add_apart(calls[middle:])
        return []

    def _add(self, calls: list[Call], spool: tuple[str, int] | None) -> None:
        added = self._store.calls.add(calls, self._usable, spool=spool)
        self._counts.update(stored=added.stored, duplicates=added.duplicates, usable=added.usable)
        self._unusable.update(added.unusable)

    def _quarantine(self, path: Path, refused: list[tuple[Row, str]]) -> None:
        if not refused:
            return
        first, reason = refused[0]
        log.warning(
            "rows quarantined count=%d first=%s reason=%s", len(refused), first.source, reason
        )
        if path.suffix == SUFFIX and any(len(row.raw) > _LONGEST_RAW for row, _ in refused):
            _keep(path)
        self._store.quarantine.add(
            [
                Quarantined(
                    source=row.source,
                    reason=reason,
                    raw=row.raw.decode("utf-8", "backslashreplace")[:_LONGEST_RAW],
                )
                for row, reason in refused
            ]
        )
        self._counts["quarantined"] += len(refused)

    def _count_torn(self, path: Path, offset: int) -> None:
        """Count a frame whose writer died before ``capture_call`` had returned."""
        if torn := torn_bytes(path, offset):
            self._counts["torn"] += 1
            log.info("unfinished call of a dead process segment=%s bytes=%d", path.name, torn)


def _call(body: bytes) -> Call | str:
    try:
        return decode(body)
    except (ValueError, RecursionError) as error:
        return _reason(error)


def _line_rows(name: str, lines: Iterable[bytes]) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if line := line.strip():
            try:
                found: Call | str = read_line(line)
            except (ValueError, RecursionError) as error:
                found = _reason(error)
            yield Row(f"{name}:{number}", line, found)


def _reason(error: Exception) -> str:
    """Return why a row is not a call, without the text of the row."""
    if isinstance(error, ValidationError):
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        return "not a call: " + "; ".join(
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in problems[:5]
        )
    return f"not a call: {type(error).__name__}: {error}"


def _keep(path: Path) -> None:
    """Give the segment a second name, under which it outlives its removal from the spool."""
    kept = path.parent / "damaged" / path.name
    kept.parent.mkdir(exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.link(path, kept)
        log.warning("damaged segment kept as %s", kept)


def _move(path: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    target, number = folder / path.name, 1
    while target.exists():
        target, number = folder / f"{path.stem}.{number}{path.suffix}", number + 1
    path.rename(target)


def _sweep(folder: Path) -> None:
    """Remove what is left of segments whose writers died before the first call."""
    for path in folder.glob("*.new"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                path.unlink()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's drain lock, which the kernel releases if we die."""
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(folder / "drain.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)
