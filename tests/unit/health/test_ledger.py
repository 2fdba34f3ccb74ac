"""The ledger: what survives a power cut, and what counts as a repeat."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slm_core.health.ledger import WEEK_SECONDS, Ledger, LedgerEntry
from slm_core.records import NextAction

NOW = 1_800_000_000.0


def entry(**fields: object) -> LedgerEntry:
    known: dict[str, object] = {
        "wall_time": NOW,
        "boot_id": "boot-1",
        "job": "job-1",
        "gpu": "GPU-1",
        "action": NextAction.RESUME,
    }
    return LedgerEntry.model_validate({**known, **fields})


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "gpus" / "ledger.json")


def test_entries_come_back_oldest_first(ledger: Ledger) -> None:
    assert ledger.entries() == []
    first, second, third = entry(xids=(79, 45)), entry(gpu="GPU-2"), entry(gpu=None, reason="UVM")
    ledger.record(first)
    ledger.record(second, third)
    assert Ledger(ledger.path).entries() == [first, second, third]
    assert ledger.entries("GPU-2") == [second]


def test_only_another_job_makes_a_repeat(ledger: Ledger) -> None:
    ledger.record(entry(xids=(31,)), entry(job="job-2", gpu="GPU-2", xids=(13, 43)))
    found = ledger.repeats("job-1", frozenset({13, 31}))
    assert [(one.gpu, one.xid, one.job) for one in found] == [("GPU-2", 13, "job-2")]
    assert [(one.gpu, one.xid) for one in ledger.seen_in_job("job-1")] == [("GPU-1", 31)]


def test_reboots_are_counted_by_boot_and_for_a_week(ledger: Ledger) -> None:
    reboot = NextAction.REBOOT
    ledger.record(
        entry(action=reboot, wall_time=NOW - WEEK_SECONDS - 1, boot_id="long-ago"),
        entry(action=reboot, boot_id="boot-1"),
        entry(action=reboot, boot_id="boot-1", job="job-2"),
        entry(action=reboot, boot_id="boot-2"),
        entry(action=reboot, boot_id="boot-3", gpu="GPU-9"),
        entry(action=NextAction.DROP_GPU, boot_id="boot-4"),
    )
    assert ledger.reboots("GPU-1", now=NOW) == 2
    assert ledger.reboots("GPU-9", now=NOW) == 1
    assert ledger.reboots("GPU-5", now=NOW) == 0


@pytest.mark.parametrize(
    "action", [NextAction.REBOOT, NextAction.CONTACT_VENDOR, NextAction.CHECK_POWER]
)
def test_a_reboot_is_pending_until_the_boot_id_changes(ledger: Ledger, action: NextAction) -> None:
    assert ledger.pending_reboot("boot-1") is None
    asked = entry(action=action)
    ledger.record(asked, entry(gpu="GPU-2"))
    assert ledger.pending_reboot("boot-1") == asked
    assert ledger.pending_reboot("boot-2") is None


@pytest.mark.parametrize("content", ["", "{", '{"entries": [{"gpu": 3}]}', "[]"])
def test_a_damaged_ledger_is_set_aside(ledger: Ledger, content: str) -> None:
    ledger.path.parent.mkdir(parents=True)
    ledger.path.write_text(content)
    ledger.record(entry())
    assert ledger.entries() == [entry()]
    aside = list(ledger.path.parent.glob("*.damaged-*"))
    assert [path.read_text() for path in aside] == [content]


def test_a_ledger_that_cannot_be_read_now_is_not_forgotten(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.record(entry())

    def fail(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_text", fail)
        with pytest.raises(OSError, match="Input/output"):
            ledger.record(entry(gpu="GPU-2"))
        assert ledger.entries() == []
    assert ledger.entries() == [entry()]


def test_both_syncs_come_before_record_returns(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.record(entry())
    seen: list[str] = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(file: int) -> None:
        seen.append("folder" if os.path.isdir(f"/proc/self/fd/{file}") else "file")
        fsync(file)

    def watched_replace(source: Path, target: Path) -> None:
        seen.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    ledger.record(entry())
    assert seen == ["file", "rename", "folder"]


def test_no_entry_is_lost_when_several_processes_write(ledger: Ledger) -> None:
    script = f"""
from pathlib import Path
from slm_core.health.ledger import Ledger, LedgerEntry
import sys
for number in range(10):
    Ledger(Path({str(ledger.path)!r})).record(LedgerEntry(
        wall_time=number, boot_id="b", job=sys.argv[1], gpu="GPU-1", action="resume"))
"""
    writers = [subprocess.Popen([sys.executable, "-c", script, str(n)]) for n in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert len(ledger.entries()) == 30


def test_a_stuck_writer_does_not_stop_the_verdict(ledger: Ledger) -> None:
    import fcntl

    ledger.path.parent.mkdir(parents=True)
    with ledger.path.with_name(ledger.path.name + ".lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        began = time.monotonic()
        ledger.record(entry())
    assert time.monotonic() - began < 5
    assert ledger.entries() == [entry()]
