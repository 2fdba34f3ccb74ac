"""Lines of the kernel log to events of the NVIDIA driver.

A lost GPU does not always print an Xid, and a poisoned driver prints none at all, so that more
than the Xid line is read: MIG instances, lines without an Xid, the message that the driver
spreads over three lines, the fatal error of unified memory (UVM), and Xid 154, in which the
driver says what it needs.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from typing import Literal

from slm_core.health.pci import BDF, normal_bdf
from slm_core.records import Record

EventKind = Literal["xid", "recovery", "off_bus", "uvm_fatal", "reset_required", "sxid"]
RECOVERY = 154
"""The Xid in which the driver says what it needs."""
OFF_BUS = 79
GSP = (119, 120)
"""Xids of the firmware processor; each further call into the driver may block for a minute."""

RECOVERY_ACTIONS = (
    "none",
    "gpu_reset",
    "node_reboot",
    "drain_p2p",
    "drain_and_reset",
    "recover_imex",
    "bus_reset",
    "system_reboot",
)
"""What the driver may ask for, by the number in Xid 154 and in NVML field 230."""

# Where a line carries no number: words of several driver generations, the most specific first.
_RECOVERY_WORDS = (
    ("imex", "recover_imex"),
    ("drain and reset", "drain_and_reset"),
    ("drain", "drain_p2p"),
    ("system reboot", "system_reboot"),
    ("reboot", "node_reboot"),
    ("bus reset", "bus_reset"),
    ("reset", "gpu_reset"),
    ("flr", "gpu_reset"),
    ("none", "none"),
)

_XID = re.compile(
    rf"NVRM:\s+Xid \((?:PCI:)?({BDF})(?:\s+GPU-I:(\d+))?(?:\s+GPU-CI:\d+)?\):\s*(\d+)\b"
)
_RECOVERY = re.compile(
    r"changed from (?:0x[0-9a-fA-F]+ )?\(?[^()]*?\)? to "
    r"(?:(0x[0-9a-fA-F]+) ?)?\(?([^()]*?)\)?\s*$"
)
_CAUSED_BY = re.compile(r"caused by previous Xid (\d+)")
_OFF = re.compile(rf"NVRM:\s+GPU ({BDF}):\s+GPU has fallen off the bus")
_OFF_BEGINS = re.compile(rf"NVRM:\s+The NVIDIA GPU ({BDF})")
_OFF_ENDS = re.compile(r"fallen off the bus and is not responding to commands")
_OFF_LINES = 4
_UVM = re.compile(
    r"uvm encountered global fatal error|requiring os reboot to recover"
    r"|nvidia-uvm: Encountered a global fatal error",
    re.IGNORECASE,
)
_RESET = re.compile(r"NV_ERR_RESET_REQUIRED")
_SXID = re.compile(rf"SXid \((?:PCI:)?({BDF})\):\s*(\d+)")
_BOOT = re.compile(r"^Linux version \d")

_KMSG = re.compile(r"^\d+,\d+,(\d+),[^;]*;(.*)$", re.DOTALL)
_DMESG = re.compile(r"^(?:<\d+>)?\[\s*(\d+\.\d+)\]\s*(.*)$", re.DOTALL)
_DMESG_T = re.compile(r"^\[(\w{3} \w{3}\s+\d+ [\d:]{8} \d{4})\]\s*(.*)$", re.DOTALL)
_ISO = re.compile(
    r"^(\d{4}-\d\d-\d\d[T ][\d:]{8}(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?)\s+(.*)$", re.DOTALL
)
_SYSLOG = re.compile(r"^(\w{3}\s+\d+ [\d:]{8})\s+(.*)$", re.DOTALL)
_KERNEL = re.compile(r"^\S+ kernel(?:\[\d+\])?:\s(.*)$", re.DOTALL)


class KernelEvent(Record):
    """One thing that the driver reported."""

    kind: EventKind
    code: int | None = None
    """Number of an Xid or SXid; 154 for ``recovery``."""
    pci: str | None = None
    """Address as ``0000:41:00.0``; None is about the whole machine, or unknown."""
    gpu_instance: int | None = None
    """MIG instance."""
    action: str | None = None
    """Of ``recovery`` only: one of ``RECOVERY_ACTIONS``, or ``unknown``."""
    caused_by: int | None = None
    """Of Xid 45: the Xid that the driver names as the cause."""
    text: str
    """The line without its time."""
    at: datetime | None = None
    monotonic_seconds: float | None = None
    """Seconds since boot, where the line says so."""

    @property
    def is_state(self) -> bool:
        """Whether it describes how things are until the next boot, rather than a moment."""
        return self.kind in ("recovery", "off_bus", "uvm_fatal") or self.code == OFF_BUS


class Parser:
    """Reads lines in order; needed for messages that are spread over several."""

    def __init__(self) -> None:
        # What the kernel calls time zero; it counts no seconds of sleep, nor does this clock.
        self._zero = datetime.now(UTC) - timedelta(seconds=time.monotonic())
        self._lost: str | None = None
        self._lines_left = 0
        self.boots = 0
        """How many boots began in what was fed."""

    def feed(self, line: str) -> list[KernelEvent]:
        """Return what one record of the log reports; mostly nothing."""
        text, at, seconds = _split_time(line.rstrip("\n"))
        if seconds is not None and at is None:
            at = self._zero + timedelta(seconds=seconds)
        found: list[KernelEvent] = []
        # /dev/kmsg writes the line breaks inside one message as \x0a.
        for part in text.replace("\\x0a", "\n").splitlines():
            if event := self._read(part):
                found.append(event.model_copy(update={"at": at, "monotonic_seconds": seconds}))
        return found

    def _read(self, text: str) -> KernelEvent | None:
        if begins := _OFF_BEGINS.search(text):
            self._lost, self._lines_left = normal_bdf(begins[1]), _OFF_LINES
        elif self._lines_left:
            self._lines_left -= 1
        if _BOOT.match(text):
            self.boots += 1
        event = _event(text)
        if event is not None and event.kind == "off_bus" and event.pci is None:
            pci = self._lost if self._lines_left else None
            self._lost, self._lines_left = None, 0
            return event.model_copy(update={"pci": pci})
        return event


def recovery_action(number: int) -> str:
    """Return the name of the driver's request ``number``, or ``unknown``."""
    return RECOVERY_ACTIONS[number] if 0 <= number < len(RECOVERY_ACTIONS) else "unknown"


def _event(text: str) -> KernelEvent | None:
    if xid := _XID.search(text):
        code = int(xid[3])
        where = {
            "pci": normal_bdf(xid[1]),
            "gpu_instance": int(xid[2]) if xid[2] else None,
            "code": code,
            "text": text,
        }
        if code == RECOVERY:
            return KernelEvent(kind="recovery", action=_asked_for(text), **where)
        cause = _CAUSED_BY.search(text)
        return KernelEvent(kind="xid", caused_by=int(cause[1]) if cause else None, **where)
    if _UVM.search(text):
        return KernelEvent(kind="uvm_fatal", text=text)
    if off := _OFF.search(text):
        return KernelEvent(kind="off_bus", pci=normal_bdf(off[1]), text=text)
    if _OFF_ENDS.search(text):
        return KernelEvent(kind="off_bus", text=text)
    if _RESET.search(text):
        return KernelEvent(kind="reset_required", text=text)
    if sxid := _SXID.search(text):
        return KernelEvent(kind="sxid", code=int(sxid[2]), pci=normal_bdf(sxid[1]), text=text)
    return None


def _asked_for(text: str) -> str:
    change = _RECOVERY.search(text)
    if change is None:
        return "unknown"
    if change[1]:  # the number first: the words changed from driver to driver
        return recovery_action(int(change[1], 16))
    words = change[2].lower()
    return next((name for word, name in _RECOVERY_WORDS if word in words), "unknown")


def _split_time(line: str) -> tuple[str, datetime | None, float | None]:
    """Return message, wall-clock time and seconds since boot, from any usual spelling."""
    if found := _KMSG.match(line):
        return found[2], None, int(found[1]) / 1e6
    if found := _DMESG.match(line):
        return _without_host(found[2]), None, float(found[1])
    at: datetime | None = None
    rest = line
    if found := _ISO.match(line):
        at, rest = _aware(datetime.fromisoformat(found[1].replace(",", "."))), found[2]
    elif found := _DMESG_T.match(line):
        at, rest = _clock(found[1], "%a %b %d %H:%M:%S %Y"), found[2]
    elif found := _SYSLOG.match(line):
        at, rest = _this_year(found[1]), found[2]
    rest = _without_host(rest)
    if at is not None and (found := _DMESG.match(rest)):
        return found[2], at, float(found[1])
    return rest, at, None


def _without_host(text: str) -> str:
    found = _KERNEL.match(text)
    return found[1] if found else text


def _aware(when: datetime) -> datetime:
    return when.astimezone(UTC)  # without a zone it is local time


def _clock(text: str, form: str) -> datetime | None:
    try:
        return _aware(datetime.strptime(text, form))  # noqa: DTZ007 - local by convention
    except ValueError:
        return None


def _this_year(text: str) -> datetime | None:
    """Read a time without a year: the latest such moment that is not in the future."""
    now = datetime.now(UTC)
    for year in (now.year + 1, now.year, now.year - 1):
        at = _clock(f"{text} {year}", "%b %d %H:%M:%S %Y")
        if at is not None and at <= now + timedelta(days=1):
            return at
    return None
