"""Every shape in which the driver reports a fault, and the ways in which logs write the time."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from slm_core.health.kernel_lines import KernelEvent, Parser

AT_3B = "0000:3b:00.0"
SHAPES = [
    ("NVRM: Xid (PCI:0000:3b:00): 79, pid=7, name=trainer, GPU has fallen off the bus.",
     {"kind": "xid", "code": 79, "pci": AT_3B}),
    ("NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off",
     {"kind": "xid", "code": 79, "pci": AT_3B}),
    ("NVRM: Xid (0000:3b:00): 13, Graphics Exception", {"kind": "xid", "code": 13, "pci": AT_3B}),
    ("NVRM: Xid (PCI:0000:3b:00 GPU-I:02): 94, Contained: CE",
     {"kind": "xid", "code": 94, "pci": AT_3B, "gpu_instance": 2}),
    ("NVRM: Xid (PCI:0000:3b:00 GPU-I:02 GPU-CI:00): 31, MMU Fault",
     {"kind": "xid", "code": 31, "pci": AT_3B, "gpu_instance": 2}),
    ("NVRM: Xid (PCI:0000:3b:00): 45, Ch 00000001 caused by previous Xid 94",
     {"kind": "xid", "code": 45, "caused_by": 94}),
    ("NVRM: Xid (PCI:0000:3b:00): 154, GPU recovery action changed from 0x0 (None) to "
     "0x1 (GPU Reset Required)", {"kind": "recovery", "code": 154, "action": "gpu_reset"}),
    ("NVRM: Xid (PCI:0000:3b:00): 154, GPU recovery action changed from 0x2 (Node Reboot "
     "Required) to 0x0 (None)", {"kind": "recovery", "action": "none"}),
    ("NVRM: Xid (PCI:0000:3b:00): 154, GPU recovery action changed from 0x0 (None) to "
     "0x2 (None)", {"kind": "recovery", "action": "node_reboot"}),
    ("NVRM: Xid (PCI:0000:3b:00): 154, GPU recovery action changed from None to OS Reboot",
     {"kind": "recovery", "action": "node_reboot"}),
    ("NVRM: Xid (PCI:0000:3b:00): 154, GPU recovery action changed from None to Drain and Reset",
     {"kind": "recovery", "action": "drain_and_reset"}),
    ("NVRM: Xid (PCI:0000:3b:00): 154, GPU recovery action changed from None to PF FLR",
     {"kind": "recovery", "action": "gpu_reset"}),
    ("NVRM: Xid (PCI:0000:3b:00): 154, something new", {"kind": "recovery", "action": "unknown"}),
    ("NVRM: GPU 0000:3b:00.0: GPU has fallen off the bus.", {"kind": "off_bus", "pci": AT_3B}),
    ("NVRM: fallen off the bus and is not responding to commands.",
     {"kind": "off_bus", "pci": None}),
    ("NVRM: nvGpuOpsReportFatalError: uvm encountered global fatal error 0x3f, requiring os "
     "reboot to recover.", {"kind": "uvm_fatal", "pci": None}),
    ("nvidia-uvm: Encountered a global fatal error: NV_ERR_GPU_IS_LOST", {"kind": "uvm_fatal"}),
    ("NVRM: Assertion failed: Reset required [NV_ERR_RESET_REQUIRED] (0x62) @ some.c:1",
     {"kind": "reset_required", "code": None}),
    ("nvidia-nvswitch0: SXid (PCI:0000:c2:00.0): 20034, Non-fatal, Link 3",
     {"kind": "sxid", "code": 20034, "pci": "0000:c2:00.0"}),
    ("NVRM: Xid (PCI:0018:01:00): 149, NETIR_LINK_EVT Fatal", {"code": 149, "pci": "0018:01:00.0"}),
    ("NVRM: Xid (PCI:0000:3B:00): 999, never seen before", {"kind": "xid", "code": 999}),
]  # fmt: skip


def parse(line: str) -> KernelEvent | None:
    """What one line reports by itself."""
    return next(iter(Parser().feed(line)), None)


@pytest.mark.parametrize(("line", "expected"), SHAPES, ids=[line[:60] for line, _ in SHAPES])
def test_a_shape(line: str, expected: dict[str, object]) -> None:
    event = parse(line)
    assert event is not None
    assert event.text == line
    assert {key: getattr(event, key) for key in expected} == expected


@pytest.mark.parametrize(
    "line",
    [
        "pcieport 0000:40:01.1: AER: Corrected error received: 0000:40:01.1",
        "NVRM: The NVIDIA GPU 0000:3b:00.0",
        "NVRM: loading NVIDIA UNIX x86_64 Kernel Module  580.65.06",
        "my-program: Xid 79 is in my name",
        "",
    ],
)
def test_what_is_no_fault(line: str) -> None:
    assert parse(line) is None


PROBE = (
    "NVRM: The NVIDIA GPU 0000:b4:00.0",
    "NVRM: (PCI ID: 10de:2330) installed in this system has",
    "NVRM: fallen off the bus and is not responding to commands.",
)


def test_three_lines_are_one_event_with_the_address_of_the_first() -> None:
    parser = Parser()
    found = [event for line in PROBE for event in parser.feed(line)]
    assert [(event.kind, event.pci) for event in found] == [("off_bus", "0000:b4:00.0")]


def test_three_lines_in_one_record_of_kmsg() -> None:
    (event,) = Parser().feed("4,7,12000000,-;" + "\\x0a".join(PROBE))
    assert (event.pci, event.monotonic_seconds) == ("0000:b4:00.0", 12.0)


def test_an_address_long_before_is_not_taken() -> None:
    parser = Parser()
    for line in (PROBE[0], *["usb 1-1: new device"] * 5):
        assert parser.feed(line) == []
    (event,) = parser.feed(PROBE[2])
    assert event.pci is None


XID = "NVRM: Xid (PCI:0000:3b:00): 63, Row remapper"
MOMENT = datetime(2026, 3, 1, 12, 0, 5, 250000, tzinfo=UTC)


@pytest.mark.parametrize(
    ("prefix", "at", "seconds"),
    [
        ("6,1234,5250000,-;", None, 5.25),
        ("[    5.250000] ", None, 5.25),
        ("<6>[    5.250000] ", None, 5.25),
        ("2026-03-01T12:00:05.250000+0000 host kernel: ", MOMENT, None),
        ("2026-03-01T13:00:05.250000+01:00 host kernel: [    5.250000] ", MOMENT, 5.25),
        ("2026-03-01T12:00:05,250000Z host kernel: ", MOMENT, None),
    ],
)
def test_times(prefix: str, at: datetime | None, seconds: float | None) -> None:
    event = parse(prefix + XID)
    assert event is not None
    assert event.text == XID
    assert event.monotonic_seconds == seconds
    if at is not None:
        assert event.at == at
    else:  # worked out from the clock that counts since boot
        assert event.at is not None
        assert event.at.tzinfo is UTC


def test_a_time_without_a_year_is_the_latest_that_has_passed() -> None:
    event = parse("Dec 31 23:59:59 host kernel: " + XID)
    assert event is not None
    assert event.at is not None
    assert event.at <= datetime.now(UTC).astimezone().replace(hour=23, minute=59, second=59)
    assert (event.text, event.at.astimezone().month) == (XID, 12)


def test_only_lasting_things_are_states() -> None:
    def is_state(line: str) -> bool:
        event = parse(line)
        assert isinstance(event, KernelEvent)
        return event.is_state

    assert is_state(SHAPES[0][0])
    assert is_state("NVRM: GPU 0000:3b:00.0: GPU has fallen off the bus.")
    assert is_state("nvidia-uvm: Encountered a global fatal error: NV_ERR_RC_ERROR")
    assert not is_state(XID)


@pytest.mark.skipif("SLM_SHARED_DATA" not in os.environ, reason="SLM_SHARED_DATA is not set")
def test_lines_collected_from_many_machines() -> None:
    path = Path(os.environ["SLM_SHARED_DATA"]) / "gpu" / "kmsg_fixtures.json"
    if not path.exists():
        pytest.skip(f"{path} does not exist")
    kinds = {"rec": "recovery", "off": "off_bus", "off2b": "off_bus", "uvm": "uvm_fatal",
             "reset": "reset_required", "off2": None, "none": None}  # fmt: skip
    fixtures = json.loads(path.read_text())
    assert len(fixtures) >= 17
    for one in fixtures:
        event = parse(one["line"])
        assert (event and event.kind) == kinds.get(one["kind"], one["kind"]), one
        if one["kind"] == "xid":
            assert event is not None
            assert event.code == one["value"]
