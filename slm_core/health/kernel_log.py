"""The kernel log: read since boot, or followed line by line.

Sources, the first that can be read: the file that the settings name, ``/dev/kmsg``,
``journalctl -k``. What cannot be read is said, and is never an empty log: a container mostly
has no ``/dev/kmsg``, or has something else mounted there.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from slm_core.health import bounded
from slm_core.health.host import HostPaths
from slm_core.health.kernel_lines import KernelEvent, Parser

__all__ = ["KernelEvent", "KernelLog", "Parser", "follow", "read"]

_JOURNAL_SECONDS = 5.0
_RECORD_BYTES = 16384
_LAST_BYTES = 64 << 20
_KMSG_DEVICE = (1, 11)
_CLOCK_SLACK = timedelta(seconds=2)


class KernelLog(NamedTuple):
    """What the kernel log holds about the driver."""

    events: tuple[KernelEvent, ...]
    tier_available: bool
    """Whether a log could be read at all."""
    problem: str | None
    """Why it could not, or what it lacks."""
    source: str = ""
    complete: bool = False
    """Whether it reaches back to the start of this boot."""


class _Lines(NamedTuple):
    lines: list[str]
    source: str
    problem: str | None = None
    complete: bool = False
    """Whether it surely begins with the boot; a `Linux version` line in it proves that too."""


def read(host: HostPaths, *, since: datetime | None) -> KernelLog:
    """Return the driver's events of this boot.

    Events that describe a moment are left out before ``since``; a lost GPU, a fatal UVM error
    and what the driver asks for hold for the whole boot. A line without a time is kept.
    """
    if host.kernel_log is not None:
        got = _read_path(host.kernel_log)
    else:
        got = _read_path(host.kmsg)
        if got.problem or not got.complete:
            journal = _read_journal(host)
            if journal.problem is None:
                got = journal
            elif got.problem:
                got = got._replace(problem=f"{got.problem}; {journal.problem}")
    if got.problem:
        return KernelLog((), False, got.problem)
    parser = Parser()
    events: list[KernelEvent] = []
    for line in got.lines:
        boots = parser.boots
        found = parser.feed(line)
        if parser.boots > boots:
            events.clear()  # all before was another boot
        events += found
    kept = _of_this_boot(events, host.booted_at(), since)
    complete = got.complete or parser.boots > 0
    problem = None if complete else f"{got.source} no longer holds the start of this boot"
    return KernelLog(tuple(kept), True, problem, got.source, complete)


def follow(
    host: HostPaths, *, stop: threading.Event, poll_seconds: float = 0.1
) -> Iterator[KernelEvent]:
    """Yield each event written after this call, at once, until ``stop`` is set.

    Where no log can be read nothing is ever yielded and the iterator ends: ask ``read`` first.
    ``stop`` is looked at every ``poll_seconds``.
    """
    path = host.kernel_log or host.kmsg
    kind = _kind(path)
    if kind == "kmsg" and not isinstance(file := _open(path), str):
        os.lseek(file, 0, os.SEEK_END)
        return _events(_follow_records(file, stop, poll_seconds))
    if kind == "file" or (host.kernel_log is not None and kind == "absent"):
        return _events(_follow_file(_Tail(path), stop, poll_seconds))
    if host.kernel_log is None and _read_journal(host).problem is None:
        return _events(_follow_journal(host, stop, poll_seconds))
    return iter(())


def _events(lines: Iterable[str]) -> Iterator[KernelEvent]:
    parser = Parser()
    for line in lines:
        yield from parser.feed(line)


def _of_this_boot(
    events: Iterable[KernelEvent], booted_at: datetime | None, since: datetime | None
) -> Iterator[KernelEvent]:
    for event in events:
        # Seconds since boot count this boot's seconds, whatever the wall clock says.
        timed = event.at if event.monotonic_seconds is None else None
        if timed and booted_at and timed < booted_at - _CLOCK_SLACK:
            continue
        if event.at and since and event.at < since - _CLOCK_SLACK and not event.is_state:
            continue
        yield event


def _kind(path: Path) -> str:
    """Return ``kmsg``, ``file``, ``absent``, or what is wrong with ``path``."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return "absent"
    except OSError as error:
        return f"{path}: {error.strerror}"
    if stat.S_ISREG(status.st_mode):
        return "file"
    device = (os.major(status.st_rdev), os.minor(status.st_rdev))
    if stat.S_ISCHR(status.st_mode) and device == _KMSG_DEVICE:
        return "kmsg"
    return f"{path} is not the kernel log"


def _open(path: Path) -> int | str:
    """Return a descriptor, or why there is none."""
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return f"{path}: {error.strerror}"


def _read_path(path: Path) -> _Lines:
    kind = _kind(path)
    if kind not in ("kmsg", "file"):
        problem = f"{path} does not exist" if kind == "absent" else kind
        return _Lines([], str(path), problem)
    file = _open(path)
    if isinstance(file, str):
        return _Lines([], str(path), file)
    try:
        return _read_ring(file, path) if kind == "kmsg" else _read_file(file, path)
    except OSError as error:
        return _Lines([], str(path), f"{path}: {error.strerror}")
    finally:
        os.close(file)


def _read_ring(file: int, path: Path) -> _Lines:
    records: list[str] = []
    while (record := _next_record(file)) is not None:
        records.append(record)
    if not records:
        return _Lines([], str(path), f"{path} holds no line at all, so it is not the kernel log")
    return _Lines(records, str(path), complete=records[0].split(",")[1] == "0")


def _next_record(file: int) -> str | None:
    """Return the next record of /dev/kmsg, which gives one per read; None: no more for now."""
    while True:
        try:
            return os.read(file, _RECORD_BYTES).decode("utf-8", "replace") or None
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno != errno.EPIPE:  # EPIPE: older records were overwritten; go on
                raise


def _read_file(file: int, path: Path) -> _Lines:
    size = os.fstat(file).st_size
    begin = max(0, size - _LAST_BYTES)
    with os.fdopen(os.dup(file), "rb") as stream:
        stream.seek(begin)
        text = stream.read().decode("utf-8", "replace")
    return _Lines(text.splitlines(), str(path))


def _read_journal(host: HostPaths) -> _Lines:
    argv = (host.journalctl, "-k", "-b", "--no-pager", "-q", "-o", "short-iso-precise")
    outcome = bounded.run(argv, deadline_seconds=_JOURNAL_SECONDS)
    lines = [line for line in outcome.stdout.splitlines() if not line.startswith("-- ")]
    if outcome.hung:
        return _Lines([], "journalctl", f"journalctl did not end in {_JOURNAL_SECONDS:g} s")
    if outcome.code or not lines:
        said = outcome.stderr.strip().splitlines()
        why = said[-1] if said else "it holds no line of the kernel"
        return _Lines([], "journalctl", f"journalctl -k: {why}")
    return _Lines(lines, "journalctl -k")


def _follow_records(file: int, stop: threading.Event, poll_seconds: float) -> Iterator[str]:
    try:
        while not stop.is_set():
            if select.select([file], [], [], poll_seconds)[0]:
                while (record := _next_record(file)) is not None:
                    yield record
    finally:
        os.close(file)


class _Tail:
    """The end of a file that grows, is cut or is replaced by the next one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode, self._position = self._look()
        self._rest = b""

    def new_lines(self) -> list[str]:
        inode, size = self._look()
        if inode != self._inode or size < self._position:
            self._inode, self._position, self._rest = inode, 0, b""
        if size == self._position:
            return []
        try:
            with self._path.open("rb") as stream:
                stream.seek(self._position)
                added = stream.read()
        except OSError:
            return []
        self._position += len(added)
        *lines, self._rest = (self._rest + added).split(b"\n")
        return [line.decode("utf-8", "replace") for line in lines]

    def _look(self) -> tuple[int, int]:
        try:
            status = self._path.stat()
        except OSError:
            return 0, 0
        return status.st_ino, status.st_size


def _follow_file(tail: _Tail, stop: threading.Event, poll_seconds: float) -> Iterator[str]:
    while not stop.is_set():
        lines = tail.new_lines()
        yield from lines
        if not lines:
            stop.wait(poll_seconds)


def _follow_journal(host: HostPaths, stop: threading.Event, poll_seconds: float) -> Iterator[str]:
    argv = (host.journalctl, "-k", "-f", "-n", "0", "-q", "-o", "short-iso-precise")
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    output = process.stdout.fileno()
    rest = b""
    try:
        while not stop.is_set():
            if not select.select([output], [], [], poll_seconds)[0]:
                continue
            added = os.read(output, _RECORD_BYTES)
            if not added:  # it ended by itself; a moment of rest, so that none spins
                time.sleep(poll_seconds)
                return
            *lines, rest = (rest + added).split(b"\n")
            yield from (line.decode("utf-8", "replace") for line in lines)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
