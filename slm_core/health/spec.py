"""What may be configured about health checks: time limits, thresholds, and what must be there."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class HealthSpec(BaseModel):
    """Limits of the preflight. The thresholds are for GPUs that do nothing yet."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    expected_gpus: int | None = Field(default=None, ge=0)
    """How many GPUs this machine must show; fewer fail. None accepts what is there."""
    require_kernel_log: bool = False
    """Whether a kernel log that cannot be read is UNKNOWN, so that no GPU may be used. Without
    it that is a warning, provided that the driver's own recovery state or CUDA vouches."""
    nvml_seconds: float = Field(default=8.0, gt=0)
    """Deadline of all questions to NVML together; a driver that answers later counts as hung."""
    nvidia_smi_seconds: float = Field(default=8.0, gt=0)
    """Deadline of `nvidia-smi`, which is asked where NVML cannot be."""
    files_seconds: float = Field(default=4.0, gt=0)
    """Deadline of reading the driver's files under /proc, /sys and /dev."""
    cuda_seconds: float = Field(default=30.0, gt=0)
    """Deadline of the CUDA test of one GPU; all GPUs are tested at the same time."""
    collective_seconds: float = Field(default=15.0, gt=0)
    """Deadline of the all-reduce over all GPUs that passed the CUDA test."""
    matmul_size: int = Field(default=4096, ge=16, le=8192)
    """Rows and columns of the test matrices. Their product is exact, so that it can be compared
    bit by bit."""
    matmul_repeats: int = Field(default=20, ge=1)
    """How often the product is computed; each time it must be the same."""
    copy_bytes: int = Field(default=256 << 20, ge=1 << 16)
    """Size of the block that is copied to the GPU and back."""
    copy_warn_gigabytes_per_second: float = Field(default=3.0, ge=0)
    """Slower copies than this are a warning: a riser, a slot or a link that fell back."""
    memory_warn_bytes: int = Field(default=500 << 20, ge=0)
    """GPU memory already in use that is a warning."""
    memory_fail_bytes: int | None = Field(default=None, ge=0)
    """GPU memory already in use that is a failure; None never fails for it."""
    temperature_warn_celsius: int = 75
    """Temperature before any work that is a warning."""
    temperature_fail_celsius: int = 90
    """Temperature before any work that is a failure."""
    sram_errors_warn: int = Field(default=4, ge=0)
    """More uncorrected on-chip errors than this over the GPU's life are a warning."""
    recent_seconds: float = Field(default=3600.0, ge=0)
    """How far back a momentary Xid counts. A lost GPU, a fatal UVM error and a request of the
    driver count for the whole boot."""
