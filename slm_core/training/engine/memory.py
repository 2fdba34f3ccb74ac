"""What memory has to do with a pass: telling that it ran out, and trying before step 1.
Imports torch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal

import torch

log = logging.getLogger(__name__)

FULL = 0.92
"""Share of a GPU's memory above which a pass does not count as fitting: the rest is for
fragmentation, NCCL's buffers and what other programs take meanwhile."""

Trial = Literal["fits", "too_full", "ran_out"]
"""How a pass went: to its end with enough memory left, or with too little, or not to its end."""

# cuBLAS, NCCL, Triton and the driver say it in words of their own, as plain RuntimeErrors.
_WORDS = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "cudaErrorMemoryAllocation",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` says that the GPU has no memory left."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


def limit_memory(fraction: float | None) -> None:
    """Let this process use only ``fraction`` of the GPU, for trying what happens then."""
    if fraction is not None and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(fraction)


def memory_facts(device: torch.device) -> dict[str, Any]:
    """Return what the allocator holds, in bytes; empty on a CPU."""
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(device)
    return {
        "allocated_bytes": torch.cuda.memory_allocated(device),
        "peak_bytes": torch.cuda.max_memory_allocated(device),
        "reserved_bytes": torch.cuda.memory_reserved(device),
        "free_bytes": free,
        "total_bytes": total,
        "allocation_retries": torch.cuda.memory_stats(device).get("num_alloc_retries", 0),
    }


def try_pass(device: torch.device, run: Callable[[], object], fraction: float | None) -> Trial:
    """Run a pass for nothing; return how the memory was.

    Args:
        device: where it runs; on a CPU nothing is measured.
        run: does the pass and keeps nothing.
        fraction: share of the card that this process may use.
    """
    if device.type != "cuda":
        return "fits" if _completes(run) else "ran_out"
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    if not _completes(run):
        return "ran_out"
    total = torch.cuda.get_device_properties(device).total_memory * (fraction or 1.0)
    used = torch.cuda.max_memory_allocated(device)
    log.info("trial pass peak_bytes=%d of=%d", used, total)
    return "fits" if used <= FULL * total else "too_full"


def _completes(run: Callable[[], object]) -> bool:
    try:
        run()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        # The traceback holds every tensor of the pass; it goes when this function returns.
        log.info("trial pass ran out of memory")
        return False
    return True
