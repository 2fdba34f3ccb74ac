"""Let several workers answer the cases of one evaluation; the scores stay those of one.

Each shard is a run of whole windows of the backend, so its batches are those that a single
worker would have made, and the answers are the same. A worker that dies leaves the answers it
had; whoever takes over its shard makes the rest. Scores, intervals and the id of the evaluation
come from ``evaluate``, which finds every answer there.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from slm_core.backends.base import WINDOW_BATCHES
from slm_core.evaluation.outputs import Arm, collect, saved_outputs
from slm_core.evaluation.spec import EvaluationSpec
from slm_core.records import ArmName, Example


def split(cases: Sequence[Example], shards: int, spec: EvaluationSpec) -> list[Sequence[Example]]:
    """Return at most ``shards`` runs of cases, in order, as equal as whole windows allow."""
    window = WINDOW_BATCHES * spec.batch_size
    windows = -(-len(cases) // window)
    shards = min(shards, windows)
    ends = [round(windows * n / shards) * window for n in range(shards + 1)] if shards else []
    return [cases[begin:end] for begin, end in pairwise(ends)]


def answer(arm: Arm, cases: Sequence[Example], spec: EvaluationSpec, folder: Path) -> int:
    """Answer those of the cases of one shard that ``folder`` lacks; return how many it holds.

    Raises:
        BackendUnavailable: the backend is down; call again to go on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    outputs = collect(
        arm,
        cases,
        outputs_file(folder, arm.name),
        max_tokens=spec.max_tokens,
        give_up_after=spec.give_up_after,
        on_output=lambda: None,
    )
    return sum(output.error is None for output in outputs)


def gather(arm: ArmName, folders: Sequence[Path], out_dir: Path) -> int:
    """Add the answers of the shards to those of ``out_dir``; return how many were new.

    Gathering twice adds nothing.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    path = outputs_file(out_dir, arm)
    known = saved_outputs(path)
    new = [
        output
        for folder in folders
        for asked, output in saved_outputs(outputs_file(folder, arm)).items()
        if asked not in known
    ]
    with path.open("a", encoding="utf-8") as file:
        file.writelines(output.model_dump_json() + "\n" for output in new)
    return len(new)


def outputs_file(folder: Path, arm: ArmName) -> Path:
    """Return the file of an arm's answers in a folder."""
    return folder / f"outputs-{arm}.jsonl"
