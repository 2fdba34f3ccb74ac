"""What to do about a run: one sentence, the commands, and the page of the runbook.

A table from how a run stands, and the error that ended it, to the next action.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from slm_core.cli.run_account import RunAccount

SILENT_SECONDS = 120.0
"""A worker that gave no sign of life for so long deserves a look."""
RUNBOOK = "RUNBOOK.md"


class NextStep(NamedTuple):
    """The next action on a run."""

    words: str
    commands: tuple[str, ...] = ()
    """With ``RUN``, ``FOLDER`` and ``TRAINING`` in the place of the run's own."""
    page: str = ""
    """Section of the runbook."""


_NAME = re.compile(r"\b(?:RUN|FOLDER|TRAINING)\b")
_RESUME = "slm runs resume RUN"
_LOGS = "slm runs logs RUN"

BY_ERROR: dict[str, NextStep] = {
    "DiskFull": NextStep(
        "Make room on the disk, then resume; the older checkpoints are whole.",
        ("df -h FOLDER", _RESUME),
        "disk-full",
    ),
    "GpuFault": NextStep(
        "A GPU or its driver failed. Do what the check asks for, then resume.",
        ("slm gpus check", _RESUME),
        "gpu-sick",
    ),
    "RecoveryExhausted": NextStep(
        "Every way to go on was tried. Read the last attempt before trying again.",
        (_LOGS, _RESUME),
        "memory-ladder-exhausted",
    ),
    "OutOfGpuMemory": NextStep(
        "The plan does not fit the GPU. Free its memory, then resume; or train a smaller plan.",
        ("slm gpus check --no-active", _RESUME),
        "memory-ladder-exhausted",
    ),
    "TrainingDiverged": NextStep(
        "The loss is not finite any more. Resuming meets it again: train anew with a lower "
        "learning rate.",
        (_LOGS,),
        "loss-diverged",
    ),
    "CheckpointCorrupt": NextStep(
        "No checkpoint is sound. Put them aside; resuming then begins at the first step.",
        ("mv TRAINING/checkpoints TRAINING/checkpoints.bad", _RESUME),
        "checkpoint-corrupt",
    ),
    "StoreUnavailable": NextStep(
        "The database did not answer. Once it does, resume.",
        ("slm doctor", _RESUME),
        "store-down",
    ),
    "BackendUnavailable": NextStep(
        "A model server did not answer. Once it does, resume; answers that came are kept.",
        ("slm doctor", _RESUME),
        "teacher-unreachable",
    ),
    "BackendError": NextStep(
        "A model server refused. Set right what it objects to, then resume.",
        ("slm doctor", _RESUME),
        "teacher-unreachable",
    ),
    "TracingUnavailable": NextStep(
        "Langfuse is required and did not answer. Once it does, resume.",
        ("slm traces check", _RESUME),
        "langfuse-unreachable",
    ),
    "NotEnoughCalls": NextStep(
        "Too few of the claimed calls can be trained on. The claim was given back; more calls "
        "mend this.",
        ("slm calls stats",),
        "training-failed",
    ),
}
"""By the name of the error that ended the run."""
_SAME_AS = {"Overloaded": "BackendUnavailable"}


def next_step(run: RunAccount) -> NextStep:
    """Return what to do about ``run``, its own id and folder filled in."""
    found = _next_step(run)
    names = {"RUN": run.run_id, "FOLDER": run.folder or ".", "TRAINING": _last_part(run)}
    filled = [_NAME.sub(lambda name: names[name[0]], line) for line in found.commands]
    return found._replace(commands=tuple(filled))


def _last_part(run: RunAccount) -> str:
    """Return the folder of the training that was at work last."""
    begun = [part for part in run.parts if part.attempts] or run.parts
    return begun[-1].folder if begun else "."


def _next_step(run: RunAccount) -> NextStep:
    error = run.why.partition(":")[0]
    match run.state:
        case "completed":
            done = f"Nothing to do. The report is {run.report}." if run.report else "Nothing to do."
            return NextStep(done)
        case "at work":
            return _at_work(run)
        case "elsewhere":
            return NextStep(
                f"Look on {run.host or 'the machine it began on'}. If that machine is gone for "
                "good, say so and resume here.",
                (f"{_RESUME} --host-is-dead",),
                "run-stopped",
            )
        case "unfinished":
            return NextStep(
                "If it does not run any more, take it up again; answers that came are kept.",
                (_RESUME,),
                "training-failed",
            )
        case "crashed":
            return NextStep(
                "Its process is gone. Resume: it goes on from the newest sound checkpoint.",
                (_RESUME,),
                "run-stopped",
            )
        case "interrupted":
            known = BY_ERROR.get(_SAME_AS.get(error, error))
            stopped = (
                "It was stopped, with its checkpoint saved. Resume when nothing speaks against."
            )
            return known or NextStep(stopped, (_RESUME,), "run-stopped")
        case "failed":
            known = BY_ERROR.get(_SAME_AS.get(error, error))
            again = "Resuming meets the same again until its cause is mended; the log tells more."
            return known or NextStep(again, (_LOGS, _RESUME), "training-failed")


def _at_work(run: RunAccount) -> NextStep:
    beats = [part.beat_seconds_ago for part in run.parts if part.beat_seconds_ago is not None]
    follow = (f"{_LOGS} --follow",)
    if run.stage == "training" and beats and min(beats) > SILENT_SECONDS:
        words = (
            f"At work, but its worker gave no sign of life for {min(beats):.0f} s. Loading and "
            "validation can take minutes; a hang is ended by the run itself."
        )
        return NextStep(words, follow, "run-stopped")
    return NextStep("It is at work; there is nothing to do.", follow)
