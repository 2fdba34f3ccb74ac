"""What an attempt's end means: its ranks' exit codes, last words and silence, in one fault."""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from slm_core.errors import SlmError
from slm_core.records import Fault
from slm_core.training.durable import disk_full
from slm_core.training.faults import ExitCode, RankEnd, fault_of, first_to_fail, read_oom_kills
from slm_core.training.last_words import read_crash, read_error, read_tail
from slm_core.training.run_folder import RunFolder
from slm_core.training.supervise import Ended


class Scene(NamedTuple):
    """What was there before the attempt began, to tell apart what it added."""

    log_bytes: int
    oom_kills: int | None

    @classmethod
    def now(cls, run: RunFolder) -> Scene:
        """Return the present state of ``run``."""
        return cls(run.log.stat().st_size if run.log.is_file() else 0, read_oom_kills())


class Verdict(NamedTuple):
    """Why an attempt failed."""

    fault: Fault
    refusal: SlmError | None
    """The worker's own typed error, if it left one."""
    words: str
    """The end of what the attempt's workers wrote."""


def find_cause(run: RunFolder, before: Scene, ended: Ended, last_step: int) -> Verdict | None:
    """Return why the attempt failed; None when all of its ranks are done."""
    words = read_tail(run.log, before.log_bytes)
    refusal = None
    if ended.alarm is not None:
        fault = ended.alarm.model_copy(update={"step": last_step})
    elif ended.hung_rank is not None:
        fault = _hang(ended, last_step)
    elif all(code == ExitCode.DONE for code in ended.codes.values()):
        return None
    else:
        ends = [_end_of(run, rank, code) for rank, code in ended.codes.items()]
        end = first_to_fail(ends)
        refusal = end.refusal
        kills = (read_oom_kills() or 0) - (before.oom_kills or 0)
        fault = fault_of(end, words, last_step=last_step, host_oom_kills=max(0, kills))
        if fault.kind == "interrupted" and ended.codes.get(0) != ExitCode.INTERRUPTED:
            # Rank 0 writes the checkpoints.
            message = "The training worker was stopped by a signal; rank 0 did not save then."
            fault = fault.model_copy(update={"message": message})
    if ended.unkillable:
        details = {**fault.details, "unkillable_pids": list(ended.unkillable)}
        update: dict[str, object] = {"details": details}
        if fault.kind == "hung":
            update |= {"kind": "driver_hung", "message": f"{fault.message} It cannot be killed."}
        fault = fault.model_copy(update=update)
    if fault.detected_after_seconds is None:
        fault = fault.model_copy(update={"detected_after_seconds": ended.silent_seconds})
    return Verdict(fault, refusal, words)


def _hang(ended: Ended, last_step: int) -> Fault:
    silent = ended.silent_seconds
    return Fault(
        kind="hung",
        message=(
            f"The training worker gave no sign of life for {silent:.1f} s in phase "
            f"{ended.phase} after step {last_step}."
        ),
        step=last_step,
        rank=ended.hung_rank,
        details={"phase": ended.phase},
        detected_after_seconds=silent,
    )


def _end_of(run: RunFolder, rank: int, code: int) -> RankEnd:
    path = run.error(rank)
    refusal = read_error(path) if code in (ExitCode.REFUSED, ExitCode.DISK_FULL) else None
    if code == ExitCode.DISK_FULL and refusal is None:
        refusal = disk_full(run.path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    return RankEnd(rank, code, refusal, read_crash(path))
