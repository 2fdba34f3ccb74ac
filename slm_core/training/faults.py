"""Why an attempt ended: from exit code, last words and kernel counters to one name.

One table reads what the GPU libraries write. It must know many shapes of the same thing:
running out of memory alone is worded differently by the allocator, the driver, cuBLAS,
Triton and NCCL.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Literal, NamedTuple

from slm_core import errors
from slm_core.errors import SlmError
from slm_core.records import Fault

Kind = Literal[
    "out_of_gpu_memory",
    "out_of_host_memory",
    "worker_killed",
    "worker_crashed",
    "cuda_error",
    "gpu_lost",
    "driver_hung",
    "hung",
    "disk_full",
    "checkpoint_corrupt",
    "diverged",
    "interrupted",
    "refused",
    "trainer_killed",
]


class ExitCode(IntEnum):
    """How a worker ends on its own account; any other code is a crash."""

    DONE = 0
    REFUSED = 70
    """A typed error; it is in the rank's error file."""
    DISK_FULL = 73
    """There may not even have been room to say so."""
    INTERRUPTED = 75
    """A signal asked it to stop. A checkpoint of the last step is saved."""


class RankEnd(NamedTuple):
    """How one rank ended by itself, before the others were killed for it."""

    rank: int
    exit_code: int
    """Negative codes are signals."""
    refusal: SlmError | None
    """The typed error it left."""
    crash: str
    """Type and message of any other exception; empty when it left none."""


class Words(NamedTuple):
    """A row of the table."""

    kind: Kind
    pattern: re.Pattern[str]


def _words(kind: Kind, *patterns: str) -> Words:
    return Words(kind, re.compile("|".join(patterns), re.IGNORECASE))


# The first row that matches decides, so the particular stands before the general.
_TABLE: Sequence[Words] = (
    _words("disk_full", r"no space left on device", r"disk quota exceeded", r"\(os error 28\)"),
    _words(
        "out_of_gpu_memory",
        r"(?:cuda|hip|gpu)\d* (?:out of memory|ran out of memory)",
        r"cuda error:? out of memory",
        r"triton error \[cuda\]: out of memory",
        r"cuda failure (?:\d+ )?'out of memory'",
        r"cuda driver error: out of memory",
        r"cu(?:blas|dnn|solver|sparse|fft)\w*_alloc_failed",
        r"cuda_error_out_of_memory",
        r"cudaErrorMemoryAllocation",
    ),
    _words(
        "out_of_host_memory",
        r"DefaultCPUAllocator: (?:can't allocate|not enough) memory",
        r"cannot allocate memory",
        r"\bMemoryError\b",
        r"std::bad_alloc",
    ),
    _words(
        "gpu_lost",
        r"gpu is lost",
        r"fallen off the bus",
        r"no cuda-capable device is detected",
        r"no cuda gpus are available",
        r"cudaErrorNoDevice",
        r"unable to determine the device handle",
    ),
    _words(
        "hung",
        r"collective operation timeout",
        r"timed out waiting \d+ms for (?:recv|send) operation",
    ),
    _words(
        "cuda_error",
        r"cuda (?:driver |runtime )?error",
        r"cuda failure",
        r"cuda_error_\w+",
        r"cudaError\w+",
        r"cu(?:blas|dnn|solver|sparse|fft)_(?:status_)?\w+",
        r"triton error \[cuda\]",
        r"nccl(?:Unhandled|Internal|System|Remote)\w*Error",
        r"nccl error",
        r"device-side assert",
        r"illegal memory access",
        r"uncorrectable ecc",
    ),
)
# Words of a rank that only noticed that another one is gone.
_PEER_GONE = re.compile(
    r"connection (?:closed|reset) by peer|broken pipe|remote process exited|ncclRemoteError"
    r"|socket (?:closed|timeout)|collective operation timeout|timed out waiting \d+ms",
    re.IGNORECASE,
)


def kind_of(words: str) -> Kind | None:
    """Return what an error text means; None when it is no fault of memory, disk or GPU."""
    return next((row.kind for row in _TABLE if row.pattern.search(words)), None)


def first_to_fail(ends: Sequence[RankEnd]) -> RankEnd:
    """Return the rank whose end explains the others', out of ``ends`` in order of death."""

    def weakness(end: RankEnd) -> int:
        if end.refusal is not None or end.exit_code == ExitCode.DISK_FULL:
            return 0
        if end.exit_code < 0:
            return 1
        if end.exit_code == ExitCode.INTERRUPTED:
            return 4
        return 3 if _PEER_GONE.search(end.crash) else 2

    return min((end for end in ends if end.exit_code != ExitCode.DONE), key=weakness)


def fault_of(end: RankEnd, log_tail: str, *, last_step: int, host_oom_kills: int) -> Fault:
    """Return the record of a rank's end.

    Args:
        end: how it ended.
        log_tail: what the attempt's workers wrote last.
        last_step: last step that was reported.
        host_oom_kills: processes that the kernel killed meanwhile for want of memory.
    """
    kind, message = _judge(end, log_tail, host_oom_kills)
    details: dict[str, object] = {}
    if end.refusal is not None:
        details |= end.refusal.context
    elif end.crash:
        details["crash"] = end.crash
    if host_oom_kills:
        details["host_oom_kills"] = host_oom_kills
    return Fault(
        kind=kind,
        message=message,
        step=last_step,
        exit_code=end.exit_code,
        rank=end.rank,
        details=details,
    )


def read_oom_kills(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> int | None:
    """Return how many processes of our control group were killed for want of memory."""
    try:
        paths = [line.split(":", 2) for line in membership.read_text("utf-8").splitlines()]
    except OSError:
        return None
    for _, controllers, path in (parts for parts in paths if len(parts) == 3):
        if controllers == "":
            places = [root / path.lstrip("/") / "memory.events", root / "memory.events"]
        elif "memory" in controllers.split(","):
            name = "memory.oom_control"
            places = [root / "memory" / path.lstrip("/") / name, root / "memory" / name]
        else:
            continue
        for place in places:
            count = _counter(place, "oom_kill")
            if count is not None:
                return count
    return None


def _judge(end: RankEnd, log_tail: str, host_oom_kills: int) -> tuple[Kind, str]:
    code = end.exit_code
    if end.refusal is not None:
        return _REFUSALS.get(type(end.refusal).__name__, "refused"), end.refusal.message
    if code == ExitCode.DISK_FULL:
        return "disk_full", "The disk is full; the worker had no room to say more."
    if code == ExitCode.INTERRUPTED:
        return "interrupted", "The training worker was stopped by a signal and saved a checkpoint."
    if code == -signal.SIGKILL:
        if host_oom_kills:
            return "out_of_host_memory", "The kernel killed the worker: host memory ran out."
        return "worker_killed", "The training worker was killed by SIGKILL."
    words = end.crash or log_tail
    kind = kind_of(words)
    if code < 0:
        how = f"The training worker was killed by {_signal_name(-code)}"
        return kind or "worker_killed", f"{how}: {_telling_line(words)}" if kind else f"{how}."
    how = f"The training worker crashed with exit code {code}"
    said = _telling_line(words) if kind else end.crash
    return kind or "worker_crashed", f"{how}: {said}" if said else f"{how}."


_REFUSALS: Mapping[str, Kind] = {
    errors.OutOfGpuMemory.__name__: "out_of_gpu_memory",
    errors.DiskFull.__name__: "disk_full",
    errors.CheckpointCorrupt.__name__: "checkpoint_corrupt",
    errors.TrainingDiverged.__name__: "diverged",
}


def _telling_line(words: str) -> str:
    """Return the line of ``words`` that the table knows."""
    return next((line.strip() for line in words.splitlines() if kind_of(line)), "")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _counter(path: Path, name: str) -> int | None:
    """Return the number behind ``name`` in a file of names and numbers."""
    try:
        pairs = [line.split() for line in path.read_text("utf-8").splitlines()]
    except OSError:
        return None
    return next((int(pair[1]) for pair in pairs if len(pair) == 2 and pair[0] == name), None)
