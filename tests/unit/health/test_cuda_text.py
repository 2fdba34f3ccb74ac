"""Words of CUDA, NCCL and cuBLAS as torch prints them."""

from __future__ import annotations

import pytest

from slm_core.health.cuda_text import CudaTrouble, classify

ADVICE = """CUDA kernel errors might be asynchronously reported at some other API call, so the \
stacktrace below might be incorrect.
For debugging consider passing CUDA_LAUNCH_BLOCKING=1
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions."""


@pytest.mark.parametrize(
    ("words", "trouble"),
    [
        ("RuntimeError: CUDA error: unknown error", "unknown_error"),
        ("torch.AcceleratorError: CUDA error: unknown error", "unknown_error"),
        ("CUDA driver error: 999", "unknown_error"),
        ("CUDA error: an illegal memory access was encountered", "illegal_access"),
        ("CUDA error: misaligned address", "illegal_access"),
        ("CUDA error: device-side assert triggered", "illegal_access"),
        ("CUDA error: unspecified launch failure", "launch_failure"),
        ("CUDA error: the launch timed out and was terminated", "launch_failure"),
        ("CUDA error: uncorrectable ECC error encountered", "ecc"),
        ("CUDA error: GPU is lost", "lost"),
        ("Unable to determine the device handle for GPU0: 0000:41:00.0: Unknown Error", "lost"),
        ("CUDA error: all CUDA-capable devices are busy or unavailable", "lost"),
        ("Failed to initialize NVML: Unknown Error", "init_failed"),
        ("Failed to initialize NVML: Driver/library version mismatch", "init_failed"),
        ("RuntimeError: No CUDA GPUs are available", "init_failed"),
        ("CUDA driver initialization failed, you might not have a CUDA gpu.", "init_failed"),
        ("CUDA error: no CUDA-capable device is detected", "init_failed"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20 MiB", "out_of_memory"),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate", "out_of_memory"),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling cublasSgemm", "library_error"),
        (
            "[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3)",
            "nccl_timeout",
        ),
        ("torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp", "nccl_error"),
    ],
)
def test_kind_of_trouble(words: str, trouble: str) -> None:
    found = classify(f"Traceback (most recent call last):\n  File x.py\n{words}\n{ADVICE}\n")
    assert found is not None
    assert found.trouble is CudaTrouble(trouble)
    assert found.line == words


@pytest.mark.parametrize(
    "words",
    [
        "",
        "MemoryError",
        "ValueError: the loss is not finite",
        "OSError: [Errno 28] No space left on device",
        ADVICE,
    ],
)
def test_what_is_not_about_a_gpu(words: str) -> None:
    assert classify(words) is None


def test_the_rank_that_failed_first_wins_over_those_that_waited_for_it() -> None:
    words = "NCCL error in: x.cpp\nWatchdog caught collective operation timeout\n" + (
        "[rank2]: RuntimeError: CUDA error: unknown error"
    )
    found = classify(words)
    assert found is not None
    assert found.trouble is CudaTrouble.UNKNOWN_ERROR


def test_a_long_line_is_cut() -> None:
    found = classify("CUDA error: unknown error " + "x" * 10_000)
    assert found is not None
    assert len(found.line) == 300
