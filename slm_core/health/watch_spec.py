"""What may be configured about watching a run and examining its faults."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class WatchSpec(BaseModel):
    """Pauses and limits of the watchdog and of the post-mortem."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kernel_poll_seconds: float = Field(default=0.1, gt=0)
    """How often the kernel log is looked at where the system cannot wake us."""
    nvml_pause_seconds: float = Field(default=1.0, gt=0)
    """Between two readings of the GPUs' vital signs; an NVML event is told at once."""
    nvml_deadline_seconds: float = Field(default=8.0, gt=0)
    """Silence after which a call into the driver counts as hung; a second process is asked
    before anybody is told, so that detection takes twice this and about two seconds."""
    ring_seconds: float = Field(default=300.0, gt=0)
    """How much of the vital signs is kept for the post-mortem."""
    own_words_seconds: float = Field(default=5.0, ge=0)
    """How long a worker may take to die in its own words after an Xid that is not the loss of a
    card, a hung driver or a machine that needs a reboot."""
    smi_seconds: float = Field(default=10.0, gt=0)
    """Deadline of `nvidia-smi -q` in the post-mortem."""
