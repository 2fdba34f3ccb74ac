"""All that was seen about one fault, in one frozen value: what ``triage`` judges.

It holds no open file, no driver handle and no clock, so that every rule can be tested from
plain values, and so that a bundle can hold the whole of it. Each part may be missing; what is
missing is said to be, never taken for good news.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from slm_core.health.cuda_text import CudaText
from slm_core.records import EvidenceTier


class CudaProbe(StrEnum):
    """How the CUDA test of one GPU ended."""

    PASSED = "passed"
    FAILED = "failed"
    HUNG = "hung"
    """It did not end in time; it may not even be possible to kill it."""
    UNTRIED = "untried"
    """It was left out, or could not be started: no answer, so never good news."""


class NvmlAnswer(StrEnum):
    """How the driver library took our question."""

    ANSWERED = "answered"
    """Says nothing about CUDA."""
    ERROR = "error"
    HUNG = "hung"
    UNTRIED = "untried"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class XidSeen(_Part):
    """One Xid line of the kernel log, since the run began."""

    code: int
    gpu: str
    """UUID, or PCI address where no UUID is known."""
    seconds: float
    """Time of the line, on any clock that all lines of one evidence share."""
    line: str


class LostSeen(_Part):
    """One sign that a GPU is off the bus."""

    gpu: str | None
    line: str


class RecoverySeen(_Part):
    """What the driver itself says that one GPU needs: its newest Xid 154, or NVML field 230."""

    gpu: str
    action: str
    """One of ``kernel_lines.RECOVERY_ACTIONS``, or ``unknown``."""
    line: str


class NvmlSeen(_Part):
    """What came of asking NVML once, in a child with a deadline."""

    answer: NvmlAnswer = NvmlAnswer.UNTRIED
    code: int | None = None
    """NVML's own number for an error, such as 18 or 999."""
    words: str = ""
    unkillable: bool = False
    lost: tuple[str, ...] = ()
    """UUIDs for which it said "lost" or "not found"."""
    need_reset: tuple[str, ...] = ()


class ProbeSeen(_Part):
    """The CUDA test of one GPU."""

    gpu: str
    outcome: CudaProbe
    words: str = ""


class Evidence(_Part):
    """One fault, from all sides."""

    fault_kind: str
    gpus: tuple[str, ...] = ()
    """UUIDs of the run's GPUs."""
    words: CudaText | None = None
    xids: tuple[XidSeen, ...] = ()
    """Of this run; older ones never count."""
    uvm: tuple[str, ...] = ()
    """Lines of a fatal error of the unified memory module, of the whole boot."""
    lost: tuple[LostSeen, ...] = ()
    """Of the whole boot: a card does not come back by itself."""
    recovery: tuple[RecoverySeen, ...] = ()
    """Of the whole boot, at most one per GPU."""
    reset_required: tuple[str, ...] = ()
    """Lines that say so without naming a GPU."""
    switch_faults: tuple[str, ...] = ()
    """Fatal lines of an NVSwitch."""
    nvml: NvmlSeen = Field(default_factory=NvmlSeen)
    probes: tuple[ProbeSeen, ...] = ()
    in_container: bool = False
    devices_denied: bool | None = None
    """Opening the driver's device file is refused, which a container's lost cgroup does; None:
    there is no such file, or it could not be tried."""
    host_lists_gpus: bool | None = None
    """The kernel driver still knows every GPU; None where that could not be read."""
    before: tuple[tuple[str, int], ...] = ()
    """GPU and Xid of earlier faults: in other jobs for 13 and 31, else on earlier attempts."""
    reboots: dict[str, int] = Field(default_factory=dict)
    """Reboots of the last seven days that each GPU was a reason for."""
    tier: EvidenceTier = EvidenceTier.SYMPTOMS

    @property
    def passed(self) -> tuple[str, ...]:
        """GPUs on which CUDA was tried and worked."""
        return tuple(p.gpu for p in self.probes if p.outcome is CudaProbe.PASSED)

    @property
    def not_passed(self) -> tuple[str, ...]:
        """GPUs of the run on which CUDA was not seen to work."""
        return tuple(gpu for gpu in self.gpus if gpu not in self.passed)

    @property
    def any_hung(self) -> bool:
        """True when a CUDA test did not come back."""
        return any(probe.outcome is CudaProbe.HUNG for probe in self.probes)
