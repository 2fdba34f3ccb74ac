"""Which kind of GPU trouble a worker's last words name.

CUDA, NCCL and cuBLAS say what they saw, not what broke: the same ``unknown error`` stands for
a lost card, a poisoned driver and a lost device permission. So the kind found here is one
fact among several, and never decides alone that a card is sick. Text that is not about a GPU
gives None.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import NamedTuple


class CudaTrouble(StrEnum):
    """What the text names, from the most telling to the least."""

    LOST = "lost"
    """The card is gone, or its hardware stopped answering."""
    ECC = "ecc"
    """Memory with an error that could not be corrected."""
    INIT_FAILED = "init_failed"
    """CUDA or NVML does not start at all, or finds no device."""
    UNKNOWN_ERROR = "unknown_error"
    """CUDA's 999: everything from a lost card to a lost device permission."""
    OUT_OF_MEMORY = "out_of_memory"
    """The allocator; no hardware fault."""
    ILLEGAL_ACCESS = "illegal_access"
    """A kernel touched memory that is not its own: nearly always a bug."""
    LAUNCH_FAILURE = "launch_failure"
    """A kernel could not start or did not end."""
    NCCL_TIMEOUT = "nccl_timeout"
    """A rank waited in vain; another one failed first."""
    NCCL_ERROR = "nccl_error"
    LIBRARY_ERROR = "library_error"
    """cuBLAS or cuDNN failed, often from lack of memory."""


class CudaText(NamedTuple):
    """One line that names trouble."""

    trouble: CudaTrouble
    line: str


_LONGEST_LINE = 300
_PATTERNS: tuple[tuple[CudaTrouble, re.Pattern[str]], ...] = tuple(
    (trouble, re.compile(pattern, re.IGNORECASE))
    for trouble, pattern in (
        (
            CudaTrouble.LOST,
            r"GPU is lost|fallen off the bus|cudaErrorDeviceUnavailable"
            r"|devices? (?:is|are) busy or unavailable|NVML_ERROR_GPU_IS_LOST"
            r"|Unable to determine the device handle"
            r"|hardware stack error|CUDA_ERROR_HARDWARE_STACK_ERROR",
        ),
        (
            CudaTrouble.ECC,
            r"uncorrectable ECC|ECC error|CUDA_ERROR_ECC_UNCORRECTABLE|cudaErrorECCUncorrectable"
            r"|uncorrectable (?:NVLink|contained) error|CUDA_ERROR_CONTAINED",
        ),
        (
            CudaTrouble.INIT_FAILED,
            r"failed to initialize NVML|CUDA driver initialization failed"
            r"|no CUDA-capable device|No CUDA GPUs are available|No devices were found"
            r"|initialization error|cuInit.{0,40}(?:fail|999|error)"
            r"|driver/library version mismatch|system not yet initialized"
            r"|CUDA driver version is insufficient",
        ),
        (
            CudaTrouble.UNKNOWN_ERROR,
            r"CUDA (?:driver )?error:? ?(?:999|unknown error)|unhandled cuda error.{0,30}unknown"
            r"|CUDA_ERROR_UNKNOWN|cudaErrorUnknown",
        ),
        (
            CudaTrouble.OUT_OF_MEMORY,
            r"CUDA out of memory|CUDA error: out of memory|OutOfMemoryError"
            r"|CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation|CUBLAS_STATUS_ALLOC_FAILED",
        ),
        (
            CudaTrouble.ILLEGAL_ACCESS,
            r"illegal memory access|misaligned address|illegal instruction was encountered"
            r"|invalid (?:program counter|address space)|device-side assert",
        ),
        (
            CudaTrouble.LAUNCH_FAILURE,
            r"unspecified launch failure|launch (?:timed out|out of resources|failure)"
            r"|CUDA_ERROR_LAUNCH_|cudaErrorLaunch",
        ),
        (
            CudaTrouble.NCCL_TIMEOUT,
            r"Watchdog caught collective operation timeout|collective operation timeout"
            r"|WorkNCCL\(.{0,200}timeout|NCCL.{0,80}timed? ?out|ncclRemoteError.{0,80}timed? ?out",
        ),
        (
            CudaTrouble.NCCL_ERROR,
            r"NCCL error|NCCL WARN|ncclUnhandledCudaError|ncclSystemError|ncclRemoteError"
            r"|ncclInternalError",
        ),
        (CudaTrouble.LIBRARY_ERROR, r"CUBLAS_STATUS_[A-Z_]+|CUDNN_STATUS_[A-Z_]+|CUDA error"),
    )
)


def classify(words: str) -> CudaText | None:
    """Return the most telling line of ``words``, or None when none is about a GPU.

    A failed rank makes the others fail in NCCL: what is higher in ``CudaTrouble`` wins over
    what comes later in the text. Of equals the first wins, for it is nearest to the cause.
    """
    lines = [line.strip() for line in words.splitlines()]
    for trouble, pattern in _PATTERNS:
        for line in lines:
            if pattern.search(line) and not _is_advice(line):
                return CudaText(trouble, line[:_LONGEST_LINE])
    return None


def _is_advice(line: str) -> bool:
    """True for what torch prints below every CUDA error, whatever it was."""
    return line.startswith(
        ("CUDA kernel errors might be", "For debugging consider", "Compile with")
    )
