"""From exit codes and real error texts to the name of a fault."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from slm_core.errors import (
    CheckpointCorrupt,
    DatasetError,
    DiskFull,
    OutOfGpuMemory,
    SlmError,
    TrainingDiverged,
)
from slm_core.training.faults import (
    ExitCode,
    RankEnd,
    fault_of,
    first_to_fail,
    kind_of,
    read_oom_kills,
)

TEXTS = [
    # The allocator.
    (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a "
        "total capacity of 23.69 GiB of which 1.10 GiB is free.",
        "out_of_gpu_memory",
    ),
    # The driver, without the allocator's words.
    (
        "torch.AcceleratorError: CUDA error: out of memory\nCUDA kernel errors might be "
        "asynchronously reported at some other API call",
        "out_of_gpu_memory",
    ),
    ("RuntimeError: Triton Error [CUDA]: out of memory", "out_of_gpu_memory"),
    (
        "torch.distributed.DistBackendError: NCCL error in: ../ProcessGroupNCCL.cpp:3356, "
        "unhandled cuda error\nncclUnhandledCudaError: Call to CUDA function failed.\n"
        "Last error:\nCuda failure 2 'out of memory'",
        "out_of_gpu_memory",
    ),
    ("Cuda failure 'out of memory'", "out_of_gpu_memory"),
    (
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "out_of_gpu_memory",
    ),
    ("RuntimeError: cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "out_of_gpu_memory"),
    ("CUDA driver error: out of memory", "out_of_gpu_memory"),
    ("cuMemCreate failed: CUDA_ERROR_OUT_OF_MEMORY", "out_of_gpu_memory"),
    ("Error: cudaErrorMemoryAllocation at line 55 in ops.cu", "out_of_gpu_memory"),
    # The host.
    (
        "RuntimeError: [enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't "
        "allocate memory: you tried to allocate 68719476736 bytes. Error code 12",
        "out_of_host_memory",
    ),
    ("OSError: [Errno 12] Cannot allocate memory", "out_of_host_memory"),
    ("MemoryError: ", "out_of_host_memory"),
    ("terminate called after throwing an instance of 'std::bad_alloc'", "out_of_host_memory"),
    # The GPU.
    ("Unable to determine the device handle for GPU0: GPU is lost.", "gpu_lost"),
    ("NVRM: Xid (PCI:0000:41:00): 79, GPU has fallen off the bus.", "gpu_lost"),
    ("RuntimeError: CUDA error: no CUDA-capable device is detected", "gpu_lost"),
    ("RuntimeError: No CUDA GPUs are available", "gpu_lost"),
    ("RuntimeError: CUDA error: unknown error", "cuda_error"),
    ("RuntimeError: CUDA error: device-side assert triggered", "cuda_error"),
    ("CUDA error: an illegal memory access was encountered", "cuda_error"),
    ("CUDA error: uncorrectable ECC error encountered", "cuda_error"),
    ("RuntimeError: CUDA error: CUBLAS_STATUS_EXECUTION_FAILED", "cuda_error"),
    ("CUDA driver initialization failed: CUDA_ERROR_SYSTEM_NOT_READY", "cuda_error"),
    ("RuntimeError: Triton Error [CUDA]: an illegal instruction was encountered", "cuda_error"),
    ("NCCL error: ncclSystemError: System call (e.g. socket) failed", "cuda_error"),
    (
        "[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, "
        "OpType=ALLREDUCE) ran for 600042 milliseconds before timing out.",
        "hung",
    ),
    (
        "RuntimeError: [../gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms "
        "for recv operation to complete",
        "hung",
    ),
    # The disk.
    ("OSError: [Errno 28] No space left on device: '/runs/1/x'", "disk_full"),
    ("safetensors_rust.SafetensorError: I/O error: disk (os error 28)", "disk_full"),
    ("OSError: [Errno 122] Disk quota exceeded", "disk_full"),
    # None of these.
    ("KeyError: 'lm_head.weight'", None),
    ("triton.runtime.errors.OutOfResources: out of resource: shared memory", None),
    ("ValueError: the student has run out of patience, not of memory", None),
]


@pytest.mark.parametrize(("text", "kind"), TEXTS, ids=[text[:40] for text, _ in TEXTS])
def test_error_texts_are_told_apart(text: str, kind: str | None) -> None:
    assert kind_of(text) == kind


@pytest.mark.parametrize(
    ("code", "crash", "tail", "kills", "kind", "words"),
    [
        (-signal.SIGKILL, "", "CUDA error: x", 0, "worker_killed", "SIGKILL"),
        (-signal.SIGKILL, "", "", 1, "out_of_host_memory", "host memory"),
        (-signal.SIGSEGV, "", "loading", 0, "worker_killed", "SIGSEGV"),
        (-signal.SIGABRT, "", "a\nCUDA error: unknown error\nb", 0, "cuda_error", "unknown"),
        (-99, "", "", 0, "worker_killed", "signal 99"),
        (1, "KeyError: 'x'", "", 0, "worker_crashed", "KeyError: 'x'"),
        (1, "", "ModuleNotFoundError", 0, "worker_crashed", "exit code 1"),
        (1, "RuntimeError: CUDA error: x", "", 0, "cuda_error", "CUDA error: x"),
        (1, "MemoryError: ", "", 0, "out_of_host_memory", "MemoryError"),
        (ExitCode.REFUSED, "", "", 0, "worker_crashed", "exit code 70"),
        (ExitCode.DISK_FULL, "", "", 0, "disk_full", "disk is full"),
        (ExitCode.INTERRUPTED, "", "", 0, "interrupted", "saved a checkpoint"),
    ],
)
def test_a_silent_end_is_named(
    code: int, crash: str, tail: str, kills: int, kind: str, words: str
) -> None:
    fault = fault_of(RankEnd(1, code, None, crash), tail, last_step=12, host_oom_kills=kills)
    assert (fault.kind, fault.step, fault.exit_code, fault.rank) == (kind, 12, code, 1)
    assert words in fault.message


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OutOfGpuMemory("x", used_bytes=5), "out_of_gpu_memory"),
        (DiskFull("x"), "disk_full"),
        (TrainingDiverged("x"), "diverged"),
        (CheckpointCorrupt("x"), "checkpoint_corrupt"),
        (DatasetError("x", longest=700), "refused"),
    ],
)
def test_a_refusal_keeps_its_words_and_numbers(error: SlmError, kind: str) -> None:
    end = RankEnd(0, ExitCode.REFUSED, error, "")
    fault = fault_of(end, "CUDA error: unknown error", last_step=3, host_oom_kills=0)
    assert (fault.kind, fault.message, fault.details) == (kind, "x", error.context)


def test_the_rank_that_explains_the_others_is_blamed() -> None:
    done = RankEnd(0, ExitCode.DONE, None, "")
    stopped = RankEnd(1, ExitCode.INTERRUPTED, None, "")
    bereaved = RankEnd(2, 1, None, "RuntimeError: [gloo] Connection closed by peer [::1]:5")
    crashed = RankEnd(3, 1, None, "RuntimeError: CUDA error: unknown error")
    killed = RankEnd(4, -9, None, "")
    refused = RankEnd(5, ExitCode.REFUSED, OutOfGpuMemory("x"), "")
    order = [done, stopped, bereaved, crashed, killed, refused]
    while len(order) > 1:
        assert first_to_fail(order).rank == order.pop().rank
    earlier = RankEnd(6, -11, None, "")
    assert first_to_fail([bereaved, earlier, killed]) is earlier


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_oom_kills_are_read_from_our_own_control_group(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("0::/jobs/a\n")
    assert read_oom_kills(tmp_path, membership) is None
    # In a container the path is that of the host, and only the root is mounted.
    write(tmp_path / "memory.events", "low 0\noom 2\noom_kill 3\n")
    assert read_oom_kills(tmp_path, membership) == 3
    write(tmp_path / "jobs/a/memory.events", "oom_kill 1\n")
    assert read_oom_kills(tmp_path, membership) == 1


def test_oom_kills_are_read_from_the_first_version_of_control_groups(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("5:cpu,cpuacct:/x\n4:memory:/x\n")
    write(tmp_path / "memory/x/memory.oom_control", "under_oom 0\noom_kill 4\n")
    assert read_oom_kills(tmp_path, membership) == 4
    assert read_oom_kills(tmp_path, tmp_path / "absent") is None
