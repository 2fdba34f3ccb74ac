"""What each GPU of this machine has done before, by UUID, over jobs and over reboots.

One file for the machine, not for the run: a card that fails in two jobs is found only by
something that outlives both. It is written, by rename and with both syncs, *before* an action
is taken, so that a machine that goes down in the action remembers what it was doing.

A damaged ledger is set aside and named, never guessed at and never in the way of a verdict. One
that cannot be read, which may pass, has no entries for who asks and is not written to.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from slm_core.records import NextAction
from slm_core.system.durable import replace_file
from slm_core.system.locks import lock_within

log = logging.getLogger(__name__)

WEEK_SECONDS = 7 * 86_400.0
MOST_ENTRIES = 2_000
"""Older ones are dropped; a machine makes a handful a month."""

_LOCK_SECONDS = 3.0
_END_THE_BOOT = (NextAction.REBOOT, NextAction.CONTACT_VENDOR, NextAction.CHECK_POWER)


class LedgerEntry(BaseModel):
    """One fault, as it was judged, for one GPU or for the whole machine."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    wall_time: float
    """Seconds since 1970; monotonic time does not survive a reboot."""
    boot_id: str
    job: str
    gpu: str | None = None
    """UUID, or PCI address where no UUID could be read; None is the whole machine."""
    xids: tuple[int, ...] = ()
    action: NextAction
    reason: str = ""
    bundle: str | None = None


class Repeat(NamedTuple):
    """Earlier trouble of one GPU that changes the verdict."""

    gpu: str
    xid: int
    job: str
    wall_time: float


class Ledger:
    """The entries of one machine in one file; several processes may write."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def entries(self, gpu: str | None = None) -> list[LedgerEntry]:
        """Return all entries, oldest first; with ``gpu`` only those of that GPU."""
        found = self._read()
        return [entry for entry in found if gpu is None or entry.gpu == gpu]

    def record(self, *entries: LedgerEntry) -> None:
        """Add ``entries`` and return once they would survive a power cut.

        Raises:
            OSError: the file cannot be read or written; it is as it was.
        """
        with self._locked():
            kept = [*self._load(), *entries][-MOST_ENTRIES:]
            document = {"entries": [entry.model_dump(mode="json") for entry in kept]}
            replace_file(self.path, json.dumps(document, indent=1).encode() + b"\n")

    def repeats(self, job: str, codes: frozenset[int]) -> tuple[Repeat, ...]:
        """Return each earlier Xid of ``codes`` that a GPU reported in another job than ``job``."""
        return tuple(
            Repeat(entry.gpu, code, entry.job, entry.wall_time)
            for entry in self._read()
            if entry.gpu is not None and entry.job != job
            for code in entry.xids
            if code in codes
        )

    def seen_in_job(self, job: str) -> tuple[Repeat, ...]:
        """Return each Xid that ``job`` itself has already had judged, on an earlier attempt."""
        return tuple(
            Repeat(entry.gpu, code, entry.job, entry.wall_time)
            for entry in self._read()
            if entry.gpu is not None and entry.job == job
            for code in entry.xids
        )

    def reboots(
        self, gpu: str, *, now: float | None = None, within_seconds: float = WEEK_SECONDS
    ) -> int:
        """Return for how many boots of the last week ``gpu`` was a reason to reboot.

        Boots are counted, not entries: two jobs that die of one fault ask for one reboot.
        """
        since = (time.time() if now is None else now) - within_seconds
        return len(
            {
                entry.boot_id
                for entry in self._read()
                if entry.gpu == gpu
                and entry.action is NextAction.REBOOT
                and entry.wall_time >= since
            }
        )

    def pending_reboot(self, boot_id: str) -> LedgerEntry | None:
        """Return the entry that asked for a reboot that has not happened yet, or None.

        Whoever inspects a card or its power restarts the machine, and a reboot that was asked
        for too often is written down as an inspection.
        """
        asked = [
            entry
            for entry in self._read()
            if entry.boot_id == boot_id and entry.action in _END_THE_BOOT
        ]
        return asked[-1] if asked else None

    def _read(self) -> list[LedgerEntry]:
        try:
            return self._load()
        except OSError as error:
            log.warning("ledger cannot be read path=%s: %s", self.path, error)
            return []

    def _load(self) -> list[LedgerEntry]:
        try:
            document = json.loads(self.path.read_text())
            return [LedgerEntry.model_validate(entry) for entry in document["entries"]]
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            aside = self.path.with_name(f"{self.path.name}.damaged-{time.time_ns()}")
            log.warning("ledger is damaged path=%s set aside as %s: %s", self.path, aside, error)
            with suppress(FileNotFoundError):  # another process was faster
                os.replace(self.path, aside)
            return []

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_name(self.path.name + ".lock").open("a") as lock:
            # Freed by the kernel, however its holder ends. A holder that hangs costs at worst an
            # entry of that other process; waiting for it would cost the verdict.
            lock_within(lock.fileno(), _LOCK_SECONDS)
            yield
