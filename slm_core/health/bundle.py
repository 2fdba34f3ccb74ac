"""All that is known about one fault, in one folder, before anything is reset or restarted.

Every file is written even when there is nothing to put in it: what could not be had is said
there, with the reason. The folder gets its name last, so that a half-written one is not taken
for a bundle.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from slm_core.health import bounded
from slm_core.health.examination import Examined
from slm_core.health.host import HostPaths
from slm_core.health.host_files import HostFiles
from slm_core.records import Fault, Triage, utc_now
from slm_core.system.durable import replace_file

_LOG_BYTES = 1 << 20
_WORDS_CHARACTERS = 64_000
_LSPCI_SECONDS = 5.0
_DMESG_SECONDS = 5.0
_PACKAGES = ("torch", "transformers", "peft", "nvidia-ml-py", "slm-swap")


def write(
    parent: Path,
    *,
    host: HostPaths,
    fault: Fault,
    words: str,
    began_at: datetime,
    examined: Examined,
    verdict: Triage,
    rule: str,
    telemetry: Path,
    sightings: Path,
) -> Triage:
    """Write the bundle below ``parent`` and return ``verdict`` with its path in it."""
    final = _free_name(parent, utc_now().strftime("postmortem-%Y%m%dT%H%M%SZ"))
    folder = final.with_name(final.name + ".partial")
    folder.mkdir(parents=True)
    verdict = verdict.model_copy(update={"bundle": str(final)})
    evidence = examined.evidence

    def put(name: str, value: Any) -> None:
        text = value if isinstance(value, str) else json.dumps(value, indent=1, default=str)
        (folder / name).write_text(text.rstrip() + "\n")

    put("verdict.json", verdict.model_dump(mode="json") | {"rule": rule})
    put("evidence.json", evidence.model_dump(mode="json"))
    put("fault.json", fault.model_dump(mode="json"))
    put("kernel_events.txt", _events(examined))
    put("kernel.log", _kernel_log(host, began_at))
    put("nvidia-smi-q.txt", _smi(examined))
    put("recovery.json", _recovery(examined))
    put("stuck.json", _stuck(examined.files))
    put("lspci.txt", _output(("lspci", "-vv", "-d", "10de:"), _LSPCI_SECONDS))
    put("versions.json", _versions(examined, host))
    put("worker.log", words[-_WORDS_CHARACTERS:] or "the worker wrote nothing")
    for name, source in (("telemetry.jsonl", telemetry), ("sightings.jsonl", sightings)):
        try:
            shutil.copyfile(source, folder / name)
        except OSError as error:
            put(name, f"none: {error.strerror}")
    replace_file(folder / "README.txt", _summary(verdict, fault, rule).encode() + b"\n")
    os.rename(folder, final)
    return verdict


def _free_name(parent: Path, name: str) -> Path:
    number, path = 1, parent / name
    while path.exists() or path.with_name(path.name + ".partial").exists():
        number += 1
        path = parent / f"{name}-{number}"
    return path


def _events(examined: Examined) -> str:
    kernel = examined.kernel
    head = f"source: {kernel.source or 'none'}; {kernel.problem or 'complete'}"
    return "\n".join([head, *(f"{event.at} {event.text}" for event in kernel.events)])


def _kernel_log(host: HostPaths, began_at: datetime) -> str:
    """Return the raw lines: also what no rule knows, such as errors of the PCIe bus."""
    if host.kernel_log is None:
        since = began_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        return _output(("dmesg", "--time-format", "iso", "--since", since), _DMESG_SECONDS)
    argv = ("tail", "-c", str(_LOG_BYTES), str(host.kernel_log))
    return _output(argv, _DMESG_SECONDS)


def _stuck(files: HostFiles) -> list[dict[str, Any]] | str:
    """Return what a child saw that could be left behind; this process asks for none of it."""
    if not files.finished and not files.stuck:
        return f"not known: whoever looked did not come back: {files.hung_at or 'too busy'}"
    return list(files.stuck)


def _smi(examined: Examined) -> str:
    if examined.smi is None:
        return f"not asked: {examined.quiet or 'the run used no GPU'}"
    return _outcome_text(examined.smi)


def _output(argv: tuple[str, ...], deadline_seconds: float) -> str:
    return _outcome_text(bounded.run(argv, deadline_seconds=deadline_seconds))


def _outcome_text(outcome: bounded.Outcome) -> str:
    end = f"exit code {outcome.code}"
    if outcome.hung:
        held = ", cannot be killed" if outcome.unkillable else ""
        end = f"hung for {outcome.seconds:.1f} s in state {outcome.state}{held}"
    return "\n".join(part for part in (f"# {end}", outcome.stdout, outcome.stderr) if part)


def _recovery(examined: Examined) -> dict[str, Any]:
    asked = {seen.gpu: seen.model_dump() for seen in examined.evidence.recovery}
    return {gpu: asked.get(gpu, "nothing known") for gpu in (*examined.evidence.gpus, *asked)}


def _versions(examined: Examined, host: HostPaths) -> dict[str, Any]:
    versions: dict[str, Any] = {
        "boot_id": host.boot_id(),
        "kernel": platform.release(),
        "kernel_module": examined.files.driver_version or None,
        "driver_library": examined.nvml.driver_version if examined.nvml else None,
        "python": sys.version.split()[0],
    }
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def _summary(verdict: Triage, fault: Fault, rule: str) -> str:
    lines = [
        f"{verdict.action.upper()}: {verdict.reason}",
        f"rule: {rule}; evidence tier {verdict.tier}; {time.strftime('%F %T', time.gmtime())} UTC",
        f"fault: {fault.kind} at step {fault.step}: {fault.message}",
        *(f"fact: {fact}" for fact in verdict.facts),
        *(f"leave out: {gpu}" for gpu in verdict.sick),
        *(f"works: {gpu}" for gpu in verdict.survivors),
        *(f"by hand: {command}" for command in verdict.commands),
    ]
    return "\n".join(lines)
