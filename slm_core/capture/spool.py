"""The writer's side of the spool folder: which segment is open, and what to do without one.

Storing a call is two copies into mapped memory under a lock: no system call, because one that
lets go of the GIL costs a thread 5 ms beside another busy one. Only a full segment, about
once in 1,500 calls, opens a file. The folder belongs on a local disk; on a volume, if it is to
outlive its container.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
import time
import weakref
from collections import Counter, deque
from itertools import count
from pathlib import Path

from slm_core.capture.segment import START, SUFFIX, Segment, frame_bytes
from slm_core.capture.spec import OnFull
from slm_core.errors import CaptureError
from slm_core.system.durable import is_full_disk

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.25
"""Pause between attempts to open a segment while that fails: no file work per call."""
_NO_ROOM = "spool is full"
_TOO_LARGE = "larger than the whole spool"
_DISK_FULL = "disk is full"
_NOT_WRITABLE = "spool folder cannot be written"
_CLOSED = "tracer is closed"


class NotStored(Exception):
    """A record was not stored; ``reason`` is one of a few fixed texts, to be counted by."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Spool:
    """A folder of segments, as one process writes it. Safe to use from many threads."""

    def __init__(
        self,
        folder: Path,
        *,
        segment_bytes: int,
        spool_bytes: int,
        on_full: OnFull = "drop",
        block_seconds: float = 5.0,
    ) -> None:
        self.folder = folder
        self._segment_bytes = segment_bytes
        self._spool_bytes = spool_bytes
        self._on_full = on_full
        self._block_seconds = block_seconds
        self._closed = False
        self._begin()
        _SPOOLS.add(self)

    def _begin(self) -> None:
        """Set what belongs to this process alone; called again in a forked child."""
        self.generation = secrets.token_hex(8)
        """Differs in every process, forked ones too."""
        self.written = 0
        self.dropped: Counter[str] = Counter()
        """Reason to count."""
        self._ids = count(1)
        self._numbers = count(1)
        self._segment: Segment | None = None
        self._blocked_until = 0.0
        self._trouble: str | None = None
        self._lock = threading.RLock()
        self._storing = False
        self._postponed: deque[bytes] = deque()

    def new_id(self) -> str:
        """Return 32 hexadecimal digits that no other call has: process and counter."""
        return f"{self.generation}{next(self._ids):016x}"

    def put(self, body: bytes) -> None:
        """Store ``body``.

        Raises:
            NotStored: and counted under its reason.
            CaptureError: the spool is full, and ``on_full`` is ``raise``.
        """
        with self._lock:
            if self._storing:
                # A finaliser or signal handler interrupts this thread inside ``_store``.
                self._postponed.append(body)
                return
            self._storing = True
            try:
                self._store(body)
            finally:
                while self._postponed:
                    with contextlib.suppress(NotStored, CaptureError):  # counted all the same
                        self._store(self._postponed.popleft())
                self._storing = False

    def drop(self, reason: str) -> None:
        """Count a record that never reached the spool."""
        with self._lock:
            self.dropped[reason] += 1

    def sync(self) -> None:
        """Return once everything stored is on the disk, safe from a power cut too."""
        with self._lock:
            if self._segment is not None:
                self._segment.sync()

    def close(self) -> None:
        """Hand the open segment to the drainer. What comes later is dropped and counted."""
        with self._lock:
            self._closed = True
            self._release()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def _store(self, body: bytes) -> None:
        segment = self._segment
        if segment is None or not segment.has_room(len(body)):
            try:
                segment = self._open(len(body))
            except NotStored as refusal:
                self.dropped[refusal.reason] += 1
                raise
        segment.append(body)
        self.written += 1

    def _open(self, length: int) -> Segment:
        """Open the next segment, waiting for room if so configured."""
        if self._closed:
            raise NotStored(_CLOSED)
        size = max(self._segment_bytes, START + frame_bytes(length))
        if size > self._spool_bytes:
            raise NotStored(_TOO_LARGE)
        deadline = time.monotonic() + (self._block_seconds if self._on_full == "block" else 0)
        while True:
            reason = self._try_open(size)
            if reason is None:
                assert self._segment is not None
                return self._segment
            if self._on_full == "raise" and reason in (_NO_ROOM, _DISK_FULL):
                self.dropped[reason] += 1
                raise CaptureError(
                    f"A call could not be captured: the {reason}. Drain the spool, raise "
                    "spool_bytes, or choose on_full='drop'.",
                    folder=str(self.folder),
                )
            if time.monotonic() >= deadline:
                raise NotStored(reason)
            time.sleep(0.01)

    def _try_open(self, size: int) -> str | None:
        """Open a segment of ``size`` bytes; return why not, None when it is open."""
        now = time.monotonic()
        if self._trouble is not None and now < self._blocked_until:
            return self._trouble
        detail = f"{self._spool_bytes} bytes allowed"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # One that is still open may have room for smaller records; it is given up.
            self._release()
            if _folder_bytes(self.folder) + size > self._spool_bytes:
                trouble = _NO_ROOM
            else:
                name = f"{self.generation}-{next(self._numbers):06d}{SUFFIX}"
                self._segment = Segment(self.folder / name, size)
                trouble = None
        except OSError as error:
            trouble = _DISK_FULL if is_full_disk(error) else _NOT_WRITABLE
            detail = str(error)
        if trouble is not None:
            self._blocked_until = now + RETRY_SECONDS
        if trouble != self._trouble:
            if trouble is None:
                log.info("capture goes on folder=%s", self.folder)
            else:
                log.error("calls are not captured: %s (%s) folder=%s", trouble, detail, self.folder)
            self._trouble = trouble
        return trouble

    def _release(self) -> None:
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    def _after_fork(self) -> None:
        if self._segment is not None:
            self._segment.abandon()
        self._begin()


def _folder_bytes(folder: Path) -> int:
    """Return how much the segments of ``folder`` take, of every process."""
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(SUFFIX):
                try:
                    total += entry.stat().st_size
                except FileNotFoundError:  # drained just now
                    continue
    return total


_SPOOLS: weakref.WeakSet[Spool] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for spool in list(_SPOOLS):
        spool._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
