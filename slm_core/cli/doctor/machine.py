"""Checks of this machine: versions, disk, GPUs, kernel log, clock and files."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from slm_core.cli.doctor.findings import Answer, failed, passed, unknown, warned
from slm_core.records import Health
from slm_core.records.health import worst
from slm_core.settings import Settings

PROJECT = Path(__file__).parents[3]
"""The working copy, where this is one."""
OLDEST_PYTHON = (3, 11)
FULL_BYTES, SCARCE_BYTES = 2 << 30, 20 << 30
"""Less free space than this fails, or warns: a checkpoint of an 8B model's adapter with its
optimizer takes about half a GiB, and a merged model 15 GiB."""
SCARCE_FILES = 10_000
_SHOWN = 5


def python(_: Settings) -> Answer:
    """Is this Python new enough?"""
    version = ".".join(map(str, sys.version_info[:3]))
    seen = f"Python {version} at {sys.executable}."
    if sys.version_info[:2] < OLDEST_PYTHON:
        return failed(seen, "Install Python 3.11 or newer, remove .venv, then: make install")
    return passed(seen)


def packages(settings: Settings) -> Answer:
    """Are the packages those that are known to work together?"""
    from packaging.specifiers import SpecifierSet

    installed = {_plain(one.name): one.version for one in metadata.distributions()}
    mend = "make -B install"
    broken = [
        f"{name} {installed[name]} is not {wanted}: {what}"
        for name, (wanted, what) in FATAL.items()
        if name in installed and installed[name] not in SpecifierSet(wanted)
    ]
    if broken:
        return failed("; ".join(broken) + ".", mend)
    constraints = (settings.repo or PROJECT) / "constraints.txt"
    if not constraints.is_file():
        return warned(f"No constraints.txt beside the code; {len(installed)} packages unchecked.")
    lines = [line.split("==") for line in constraints.read_text().splitlines() if "==" in line]
    pinned = [(name, version) for name, version in lines if _plain(name) in installed]
    others = [
        f"{name} {installed[_plain(name)]} (pinned {version})"
        for name, version in pinned
        if installed[_plain(name)].partition("+")[0] != version
    ]
    prefect = installed.get("prefect", "not installed")
    if others:
        shown = ", ".join(others[:_SHOWN]) + (" ..." if len(others) > _SHOWN else "")
        seen = f"{len(others)} of {len(pinned)} packages have other versions than pinned: {shown}."
        return warned(seen, mend)
    return passed(f"{len(pinned)} packages as pinned; prefect {prefect}.")


FATAL = {
    "prefect": ("==3.8.8", "workers and server must be of one version, and this code knows 3.8.8"),
    "fastapi": ("<0.151", "with it the Prefect server does not start"),
    "sqlalchemy": (">=2.0.40,<2.1", "with 2.1 Prefect schedules nothing and looks healthy"),
    "pydantic": (">=2.12", "specs and records cannot be read"),
}
"""Packages of which another version does harm, and what harm."""


def disk(settings: Settings) -> Answer:
    """Is there room for runs, calls and temporary files, and may they be written?"""
    folders = {
        "SLM_HOME": settings.home,
        "runs": settings.home / "runs",
        "spool": settings.spool_dir,
        "TMPDIR": Path(tempfile.gettempdir()),
    }
    answers = [_room(name, folder) for name, folder in folders.items()]
    health = worst(answer.health for answer in answers)
    told = [one for one in answers if one.health is health]
    mend = dict.fromkeys(line for one in told for line in one.mend)
    return Answer(health, " ".join(dict.fromkeys(one.seen for one in told)), tuple(mend))


def _room(name: str, folder: Path) -> Answer:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    usage, files = shutil.disk_usage(there), os.statvfs(there)
    seen = f"{name} ({there}): {usage.free / 2**30:.1f} of {usage.total / 2**30:.0f} GiB free."
    mend = (f"du -xh -d 2 {there} | sort -h | tail", "see RUNBOOK.md#disk-full")
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return failed(f"{name} ({there}) cannot be written: {error.strerror}.", *mend)
    if usage.free < FULL_BYTES:
        return failed(seen, *mend)
    if files.f_files and files.f_favail < SCARCE_FILES:
        return failed(f"{name} ({there}): room for {files.f_favail} more files only.", *mend)
    return warned(seen, *mend) if usage.free < SCARCE_BYTES else passed(seen)


def gpus(settings: Settings) -> Answer:
    """May the GPUs be used, as far as can be told without making them work?"""
    from slm_core.health import HealthSpec, check_gpus
    from slm_core.health.findings import commands

    # Bounded below the check's own deadline: a driver that hangs has to be named as such.
    spec = HealthSpec(
        expected_gpus=settings.expected_gpus,
        nvml_seconds=4.0,
        nvidia_smi_seconds=4.0,
        files_seconds=3.0,
    )
    report = check_gpus(spec, kernel_log=settings.kernel_log, active=False)
    against = [one.message for one in report.checks if one.health is report.health]
    if not report.gpus and settings.expected_gpus == 0:
        return passed("No GPU here, and none is expected (SLM_EXPECTED_GPUS=0).")
    if report.health is Health.PASS:
        return passed(f"{len(report.usable)} of {len(report.gpus)} GPUs may be used.")
    mend = commands(report) or ("slm gpus check",)
    return Answer(report.health, " ".join(against), mend)


def kernel_log(settings: Settings) -> Answer:
    """Can the kernel log be read, without which GPU faults are told by symptoms only?"""
    from dataclasses import replace
    from datetime import timedelta

    from slm_core.health import kernel_log as log
    from slm_core.health.host import HostPaths
    from slm_core.records import utc_now

    host = HostPaths()
    if settings.kernel_log is not None:
        host = replace(host, kernel_log=settings.kernel_log)
    found = log.read(host, since=utc_now() - timedelta(hours=1))
    if found.tier_available:
        return passed(
            f"{found.source} can be read; {len(found.events)} driver events of this boot."
        )
    return warned(
        f"{found.problem} GPU faults are then told from what the driver says, not from the kernel.",
        "run as a user of group adm or systemd-journal, or mount the host's log and name it in "
        "SLM_KERNEL_LOG",
    )


def secrets(settings: Settings) -> Answer:
    """Are the files that hold secrets closed to others?"""
    stack = settings.home / "stack"
    files = [
        *(stack / name for name in ("state.json", "environment.sh")),
        *stack.glob("**/password"),
        PROJECT / "docker" / ".env",
    ]
    found = list(dict.fromkeys(file for file in files if file.is_file()))
    open_to_all = [file for file in found if file.stat().st_mode & stat.S_IRWXO]
    if open_to_all:
        names = ", ".join(map(str, open_to_all))
        return failed(
            f"Everyone on this machine may read {names}.",
            *(f"chmod 600 {file}" for file in open_to_all),
        )
    if not found:
        return passed("No file with secrets lies in SLM_HOME or the working copy.")
    return passed(f"{len(found)} files with secrets, none open to others.")


def repository(settings: Settings) -> Answer:
    """Does SLM_REPO, if set, name a folder that a worker can run from?"""
    if settings.repo is None:
        return passed("SLM_REPO is not set in this shell, as is right where one deploys.")
    missing = [n for n in ("flows", "tasks", "prefect.yaml") if not (settings.repo / n).exists()]
    if missing:
        return failed(
            f"SLM_REPO={settings.repo} lacks {', '.join(missing)}: every run of a worker with it "
            "fails at once.",
            "point SLM_REPO at the working copy",
        )
    return passed(f"SLM_REPO={settings.repo} holds flows, tasks and prefect.yaml.")


def clock(settings: Settings) -> Answer:
    """Does this machine's clock agree with those of database and Prefect?"""
    from slm_core.cli.doctor.clocks import offsets

    found = offsets(settings)
    if not found:
        return unknown(
            "Neither the database nor Prefect told the time, so there is no second clock."
        )
    worst_of = max(found, key=lambda name: abs(found[name]))
    seen = ", ".join(f"{name} {seconds:+.1f} s" for name, seconds in found.items())
    off = abs(found[worst_of])
    mend = ("timedatectl status", "chronyc makestep")
    if off > 60:
        return failed(f"Clocks differ: {seen}. Schedules, heartbeats and ages are wrong.", *mend)
    if off > 5:
        return warned(f"Clocks differ: {seen}.", *mend)
    return passed(f"Clocks agree: {seen}.")


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
