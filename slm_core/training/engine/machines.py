"""A run on several machines: torchrun starts the workers, and there is no parent. Imports torch.

All machines share the run's folder, in which a training on one of them has left its job. The
first worker does what a parent would: keep other trainers out, find the newest checkpoint, and
forget what was logged after it. Nothing is recovered here: when a worker ends, torchrun ends
the others, and the same command goes on from the newest checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch.distributed as dist

from slm_core.training import checkpoints
from slm_core.training.engine.ranks import Ranks
from slm_core.training.events import forget_after
from slm_core.training.run_folder import Job, RunFolder


@contextmanager
def taken_over(run: RunFolder, job: Job, ranks: Ranks) -> Iterator[Job]:
    """Yield the job as it stands now, for as many workers as torchrun started.

    Raises:
        RunBusy: a trainer, or another torchrun, is at work in the folder.
        CheckpointCorrupt: the run has checkpoints, and none verifies.
    """
    if not ranks.leads:
        yield _agreed(job, None, ranks)
        return
    with run.lock():
        newest = checkpoints.newest(run.checkpoints)
        forget_after(run.events, newest.step if newest else 0)
        yield _agreed(job, str(newest.path) if newest else None, ranks)


def _agreed(job: Job, resume_from: str | None, ranks: Ranks) -> Job:
    """Tell the others where the first worker goes on; return the job with it."""
    told: list[object] = [resume_from]
    dist.broadcast_object_list(told, src=0)
    plan = job.plan.model_copy(update={"world_size": ranks.world_size})
    update = {"resume_from": cast("str | None", told[0]), "plan": plan}
    return job.model_copy(update=update)
