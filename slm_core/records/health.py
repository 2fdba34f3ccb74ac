"""What was found out about the GPUs, and what to do after a fault."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Any

from pydantic import Field

from slm_core.records.base import Record, utc_now


class Health(StrEnum):
    """Outcome of one check. What could not be checked is UNKNOWN, never PASS."""

    PASS = "PASS"
    WARN = "WARN"
    FAIL = "FAIL"
    UNKNOWN = "UNKNOWN"


class EvidenceTier(IntEnum):
    """The best source that could be read; lower is better."""

    KERNEL_LOG = 1
    NVML_EVENTS = 2
    NVIDIA_SMI = 3
    SYMPTOMS = 4
    """Only what CUDA itself said, and the worker's heartbeat."""


class NextAction(StrEnum):
    """The one thing to do after a fault, from the least to the most disruptive."""

    RESUME = "resume"
    """Same GPUs, from the newest checkpoint."""
    DROP_GPU = "drop_gpu"
    """Resume without the sick ones."""
    RECREATE_CONTAINER = "recreate_container"
    """The container lost access to its devices; the host is well."""
    RESET_GPU = "reset_gpu"
    RELOAD_DRIVER = "reload_driver"
    REBOOT = "reboot"
    CHECK_POWER = "check_power"
    CONTACT_VENDOR = "contact_vendor"


class Gpu(Record):
    """One GPU, or one MIG slice of it."""

    uuid: str
    """Stable name; ``CUDA_VISIBLE_DEVICES`` takes it. An index shifts when a card is lost."""
    index: int
    name: str = ""
    pci_bus_id: str = ""
    """Domain, bus, device and function, lower case, such as ``0000:41:00.0``."""
    memory_bytes: int | None = None
    is_mig: bool = False


class HealthCheck(Record):
    """One question, its answer, and the numbers behind it."""

    name: str
    health: Health
    message: str
    """What was seen and, unless all is well, what to do."""
    gpu: str | None = None
    """UUID, or PCI address where no UUID could be read; None is about the whole machine."""
    facts: dict[str, Any] = Field(default_factory=dict)
    seconds: float = 0.0


class HealthReport(Record):
    """All checks of one preflight."""

    boot_id: str
    tier: EvidenceTier
    gpus: tuple[Gpu, ...] = ()
    checks: tuple[HealthCheck, ...] = ()
    seconds: float = 0.0
    created_at: datetime = Field(default_factory=utc_now)

    @property
    def health(self) -> Health:
        """The worst answer; no answer at all is UNKNOWN."""
        return worst(check.health for check in self.checks)

    @property
    def usable(self) -> tuple[Gpu, ...]:
        """GPUs of which no check says FAIL or UNKNOWN; none while the machine itself does."""
        blocking = {Health.FAIL, Health.UNKNOWN}
        if any(check.gpu is None and check.health in blocking for check in self.checks):
            return ()
        sick = {check.gpu for check in self.checks if check.health in blocking}
        return tuple(g for g in self.gpus if not sick & {g.uuid, g.pci_bus_id})


class Triage(Record):
    """After a fault: one verdict, one next action, and the facts that decided."""

    action: NextAction
    reason: str
    """One sentence for the operator."""
    facts: tuple[str, ...] = ()
    """The evidence that decided, as seen."""
    sick: tuple[str, ...] = ()
    """UUIDs of the GPUs to leave out."""
    survivors: tuple[str, ...] = ()
    """UUIDs on which CUDA was tried and worked."""
    commands: tuple[str, ...] = ()
    """What a person may type; nothing is run by itself unless a setting opts in."""
    tier: EvidenceTier = EvidenceTier.SYMPTOMS
    bundle: str | None = None
    """Folder with the evidence."""
    created_at: datetime = Field(default_factory=utc_now)


_ORDER = (Health.FAIL, Health.UNKNOWN, Health.WARN, Health.PASS)


def worst(found: Iterable[Health]) -> Health:
    """Return the worst of ``found``; UNKNOWN when there is none."""
    seen = set(found)
    return next((health for health in _ORDER if health in seen), Health.UNKNOWN)
