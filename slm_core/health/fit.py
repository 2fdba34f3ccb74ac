"""Which GPUs a training may use after a preflight; with none, why, and what to do."""

from __future__ import annotations

from pathlib import Path

from slm_core.errors import GpuFault
from slm_core.health.host import HostPaths
from slm_core.health.ledger import Ledger
from slm_core.health.remedies import commands_for
from slm_core.records import Gpu, Health, HealthReport, NextAction


def refuse_before_reboot(ledger: Path, host: HostPaths) -> None:
    """Pass when no fault of this boot asked for a reboot.

    A driver that asked for one may work again for a while, and then takes the next run too.

    Raises:
        GpuFault: one did; the next action is the reboot, or what must be seen to before it.
    """
    boot_id = host.boot_id()
    # Where the system names no boot, a reboot could never be seen to have happened.
    asked = Ledger(ledger).pending_reboot(boot_id) if boot_id else None
    if asked is None:
        return
    actions = dict.fromkeys((asked.action, NextAction.REBOOT))
    commands = tuple(line for action in actions for line in commands_for(action, ()))
    raise GpuFault(
        f"This machine must be restarted before it trains again: {asked.reason} Run "
        f"{asked.job} met this fault; resume it after the reboot.",
        action=asked.action.value,
        commands=commands,
        gpu=asked.gpu,
        bundle=asked.bundle,
    )


def fit_gpus(report: HealthReport) -> tuple[Gpu, ...]:
    """Return the GPUs that no check objects to.

    Raises:
        GpuFault: there is none; the message has every objection.
    """
    if report.usable:
        return report.usable
    against = [c.message for c in report.checks if c.health in (Health.FAIL, Health.UNKNOWN)]
    found = " ".join(against) or "No GPU was found."
    raise GpuFault(
        f"No GPU of this machine may be trained on. {found} `slm gpus check` shows everything; "
        "resume the run when a GPU is fit again.",
        health=report.health.value,
    )
