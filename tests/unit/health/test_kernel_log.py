"""Where the kernel log is read from, what is left out of it, and how it is followed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from slm_core.health import kernel_log
from slm_core.health.host import HostPaths
from slm_core.health.kernel_log import KernelEvent
from slm_core.testing.fake_driver import FakeMachine

XID_31 = "NVRM: Xid (PCI:0000:41:00): 31, MMU Fault"
XID_79 = "NVRM: Xid (PCI:0000:41:00): 79, GPU has fallen off the bus."
ASKS = "NVRM: Xid (PCI:0000:41:00): 154, GPU recovery action changed from 0x0 (None) to 0x1 (x)"
UVM = "NVRM: nvGpuOpsReportFatalError: uvm encountered global fatal error 0x60, requiring os reboot"


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    return FakeMachine(tmp_path)


def codes(log: kernel_log.KernelLog) -> list[int | None]:
    return [event.code for event in log.events]


def test_a_file_is_read(machine: FakeMachine) -> None:
    machine.log("usb 1-1: new device", XID_31, XID_79)
    log = kernel_log.read(machine.host, since=None)
    assert codes(log) == [31, 79]
    assert (log.tier_available, log.complete, log.problem) == (True, True, None)


def test_a_file_that_begins_in_the_middle_of_the_boot_is_not_whole(machine: FakeMachine) -> None:
    machine.kernel_log.write_text(XID_79 + "\n")
    log = kernel_log.read(machine.host, since=None)
    assert codes(log) == [79]
    assert (log.tier_available, log.complete) == (True, False)
    assert "start of this boot" in (log.problem or "")


def test_an_earlier_boot_does_not_count(machine: FakeMachine) -> None:
    machine.log(UVM, XID_79)
    machine.log("Linux version 6.8.0 (second boot)", XID_31)
    assert codes(kernel_log.read(machine.host, since=None)) == [31]


def test_wall_clock_times_before_this_boot_do_not_count(machine: FakeMachine) -> None:
    booted = machine.host.booted_at()
    assert booted == datetime.fromtimestamp(1700000000, UTC)
    before, after = booted - timedelta(hours=1), booted + timedelta(hours=1)
    machine.kernel_log.write_text(
        f"{before.isoformat()} host kernel: {XID_79}\n{after.isoformat()} host kernel: {XID_31}\n"
    )
    assert codes(kernel_log.read(machine.host, since=None)) == [31]


def test_moments_before_since_are_left_out_and_states_are_kept(machine: FakeMachine) -> None:
    now = time.monotonic()
    machine.log(XID_31, ASKS, XID_79, UVM, seconds=now - 20)
    machine.log("NVRM: Xid (PCI:0000:41:00): 43, Ch 8", seconds=now)
    since = datetime.now(UTC) - timedelta(seconds=10)
    found = kernel_log.read(machine.host, since=since).events
    assert [(e.kind, e.code) for e in found] == [
        ("recovery", 154),
        ("xid", 79),
        ("uvm_fatal", None),
        ("xid", 43),
    ]


def test_a_line_without_a_time_is_never_left_out(machine: FakeMachine) -> None:
    machine.kernel_log.write_text(XID_31 + "\n")
    since = datetime.now(UTC) + timedelta(hours=1)
    assert codes(kernel_log.read(machine.host, since=since)) == [31]


@pytest.mark.parametrize("trouble", ["absent", "folder", "pipe", "not-kmsg"])
def test_what_cannot_be_read_is_said_and_is_no_empty_log(trouble: str, tmp_path: Path) -> None:
    path = tmp_path / "log"
    if trouble == "folder":
        path.mkdir()
    elif trouble == "pipe":
        os.mkfifo(path)  # opening it to read would wait for a writer
    elif trouble == "not-kmsg":
        path = Path("/dev/null")  # what some containers show in place of /dev/kmsg
    log = kernel_log.read(HostPaths(kernel_log=path), since=None)
    assert not log.tier_available
    assert log.problem
    assert str(path) in log.problem
    assert log.events == ()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read any file")
def test_no_permission(machine: FakeMachine) -> None:
    machine.kernel_log.chmod(0)
    log = kernel_log.read(machine.host, since=None)
    assert not log.tier_available
    assert "Permission" in (log.problem or "")


def journalctl(folder: Path, script: str) -> str:
    program = folder / "journalctl"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)


def without_kmsg(tmp_path: Path, script: str) -> HostPaths:
    return HostPaths(
        kmsg=tmp_path / "no-kmsg", journalctl=journalctl(tmp_path, script), proc=tmp_path
    )


def test_journalctl_stands_in_for_kmsg(tmp_path: Path) -> None:
    now = datetime.now(UTC).isoformat()
    log = kernel_log.read(without_kmsg(tmp_path, f"echo '{now} host kernel: {XID_79}'"), since=None)
    assert codes(log) == [79]
    assert log.source == "journalctl -k"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo '-- No entries --'", "no line of the kernel"),
        ("echo 'No journal files were found.' >&2", "No journal files"),
        ("echo 'insufficient permissions' >&2; exit 1", "insufficient permissions"),
    ],
)
def test_a_journal_without_the_kernel_is_no_log(tmp_path: Path, script: str, said: str) -> None:
    log = kernel_log.read(without_kmsg(tmp_path, script), since=None)
    assert not log.tier_available
    assert "no-kmsg does not exist" in (log.problem or "")
    assert said in (log.problem or "")


@contextmanager
def following(host: HostPaths) -> Iterator[list[KernelEvent]]:
    """Collect what ``follow`` yields, in a thread, until the block ends."""
    stop, found = threading.Event(), list[KernelEvent]()
    events = kernel_log.follow(host, stop=stop, poll_seconds=0.02)
    collect = threading.Thread(target=_collect, args=(events, found))
    collect.start()
    try:
        yield found
    finally:
        stop.set()
        collect.join(5)
        assert not collect.is_alive()


def _collect(events: Iterator[KernelEvent], found: list[KernelEvent]) -> None:
    for event in events:
        found.append(event)


def wait_for(found: list[KernelEvent], count: int) -> list[int | None]:
    deadline = time.monotonic() + 5
    while len(found) < count and time.monotonic() < deadline:
        time.sleep(0.01)
    return [event.code for event in found]


def test_only_new_lines_are_followed_and_at_once(machine: FakeMachine) -> None:
    machine.log(XID_31)
    with following(machine.host) as found:
        began = time.monotonic()
        machine.log(XID_79)
        assert wait_for(found, 1) == [79]
        assert time.monotonic() - began < 1


def test_half_a_line_waits_for_its_end(machine: FakeMachine) -> None:
    with following(machine.host) as found, machine.kernel_log.open("a") as file:
        file.write("NVRM: Xid (PCI:0000:41:00): 7")
        file.flush()
        time.sleep(0.1)
        assert found == []
        file.write("9, GPU has fallen off the bus.\n")
        file.flush()
        assert wait_for(found, 1) == [79]


def test_a_log_that_is_cut_or_replaced_is_followed_on(machine: FakeMachine) -> None:
    with following(machine.host) as found:
        machine.kernel_log.write_text("")
        time.sleep(0.1)
        machine.log(XID_31)
        assert wait_for(found, 1) == [31]
        machine.kernel_log.rename(machine.kernel_log.with_suffix(".1"))
        machine.log(XID_79)
        assert wait_for(found, 2) == [31, 79]


def test_a_log_that_appears_later_is_read_from_its_start(machine: FakeMachine) -> None:
    machine.kernel_log.unlink()
    with following(machine.host) as found:
        machine.log(XID_79)
        assert wait_for(found, 1) == [79]


def test_a_journal_is_followed(tmp_path: Path) -> None:
    script = f"echo 'x kernel: Linux'; case \"$*\" in *-f*) echo '{XID_79}'; exec sleep 60;; esac"
    with following(without_kmsg(tmp_path, script)) as found:
        assert wait_for(found, 1) == [79]


def test_without_any_log_nothing_is_yielded_and_it_ends(tmp_path: Path) -> None:
    host = without_kmsg(tmp_path, "exit 1")
    assert list(kernel_log.follow(host, stop=threading.Event())) == []


def test_the_kernels_own_ring(tmp_path: Path) -> None:
    path = Path("/dev/kmsg")
    if not path.exists() or not os.access(path, os.R_OK):
        pytest.skip("this machine shows no /dev/kmsg")
    host = replace(HostPaths(), journalctl=journalctl(tmp_path, "exit 1"))
    log = kernel_log.read(host, since=None)
    if not log.tier_available:
        pytest.skip(f"no kernel log here: {log.problem}")
    assert log.source == "/dev/kmsg"
    stop = threading.Event()
    stop.set()
    assert list(kernel_log.follow(host, stop=stop)) == []
