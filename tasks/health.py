"""Whether the GPUs of this machine may be used."""

from __future__ import annotations

import logging
from pathlib import Path

from prefect.artifacts import create_table_artifact

from slm_core import health
from slm_core.health import HealthSpec
from slm_core.health.ledger import write_durably
from slm_core.records import Gpu, Health, HealthCheck, HealthReport
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
    try:
        _show(report)
    except Exception as error:
        # A dashboard that is away for a moment must not change what is known of the GPUs.
        log.warning("health not shown in the dashboard error=%s", type(error).__name__)
    return report


def _keep(report: HealthReport, path: Path) -> None:
    """Leave the report for whoever asks how the GPUs are without asking them again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, report.model_dump_json(indent=1) + "\n")
    except OSError as error:
        # A full disk must not change what is known of the GPUs.
        log.warning("health report not kept path=%s: %s", path, error)


def _show(report: HealthReport) -> None:
    machine = [check for check in report.checks if check.gpu is None]
    _table("gpu-machine", machine, f"{report.health}: what concerns the whole machine")
    for name, gpu in _cards(report).items():
        checks = [check for check in report.checks if check.gpu == name]
        what = f"{gpu.name} at {gpu.pci_bus_id}" if gpu else "not listed by the driver"
        _table(f"gpu-{_as_key(name)}", checks, f"{name}: {what}")


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
    """Artifact keys hold lower-case letters, digits and dashes only."""
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())
