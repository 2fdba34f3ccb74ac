"""Whether the GPUs of this machine may be used."""

from __future__ import annotations

import logging
from pathlib import Path

from prefect.artifacts import create_table_artifact

from slm_core import health
from slm_core.health import HealthSpec
from slm_core.records import Gpu, Health, HealthCheck, HealthReport
from slm_core.records.health import worst
from slm_core.system.durable import replace_file
from tasks._artifacts import showing
from tasks._events import announce_sick
from tasks._progress import progress
from tasks._wiring import current_settings, step

log = logging.getLogger(__name__)


@step("check the GPUs")
def check_gpus(
    spec: HealthSpec | None = None, active: bool = True, gpus: tuple[str, ...] = ()
) -> HealthReport:
    """Examine the GPUs and show a table per card. Sick ones are in the report, not an error."""
    settings = current_settings()
    spec = spec or HealthSpec(expected_gpus=settings.expected_gpus)
    with progress("check the GPUs") as on_progress:
        report = health.check_gpus(
            spec,
            kernel_log=settings.kernel_log,
            active=active,
            gpus=gpus,
            on_progress=on_progress,
        )
    log.info(
        "gpus checked health=%s gpus=%d usable=%d tier=%d seconds=%.1f",
        report.health,
        len(report.gpus),
        len(report.usable),
        report.tier,
        report.seconds,
    )
    for check in report.checks:
        if check.gpu and check.health is Health.FAIL:
            announce_sick(check.gpu, check.message, check=check.name)
    if not gpus:
        _keep(report, settings.gpu_report)
    with showing("health"):
        _show(report)
    return report


def _keep(report: HealthReport, path: Path) -> None:
    """Leave the report for whoever asks how the GPUs are without asking them again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, report.model_dump_json(indent=1).encode() + b"\n")
    except OSError as error:
        # A full disk must not change what is known of the GPUs.
        log.warning("health report not kept path=%s: %s", path, error)


def _show(report: HealthReport) -> None:
    machine = [check for check in report.checks if check.gpu is None]
    health = worst(check.health for check in machine)
    _table("gpu-machine", machine, f"{health}: what concerns the whole machine")
    for name, gpu in _cards(report).items():
        checks = [check for check in report.checks if check.gpu == name]
        health = worst(check.health for check in checks)
        what = f"{gpu.name} at {gpu.pci_bus_id}" if gpu else "not listed by the driver"
        # The cards of a run's page show the beginning only.
        _table(_as_key(name), checks, f"{health}: {what}, {name}")


def _cards(report: HealthReport) -> dict[str, Gpu | None]:
    """Return every card that a check names, with its record if the driver listed it."""
    known = {name: gpu for gpu in report.gpus for name in (gpu.pci_bus_id, gpu.uuid)}
    return {check.gpu: known.get(check.gpu) for check in report.checks if check.gpu}


def _table(key: str, checks: list[HealthCheck], description: str) -> None:
    rows = [
        {"check": one.name, "health": one.health.value, "what was seen": one.message}
        for one in checks
    ]
    create_table_artifact(rows, key=key, description=description)


def _as_key(name: str) -> str:
    """Return the key of a card's table, such as ``gpu-`` and the rest of its UUID.

    Artifact keys hold lower-case letters, digits and dashes only.
    """
    key = "".join(letter if letter.isalnum() else "-" for letter in name.lower())
    return key if key.startswith("gpu-") else f"gpu-{key}"
