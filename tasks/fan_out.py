"""Shards of an evaluation, answered by the workers of a Dask cluster.

Only the local models are shared out: the teacher is a server of its own and is asked from here.
All workers see the folders of this one, as they do when they are processes of one machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from slm_core.errors import EvaluationError, MissingDependency
from slm_core.evaluation import answer, gather, split
from slm_core.presets import EvalSpec
from slm_core.records import Adapter, ArmName
from tasks._arms import named_arm
from tasks._progress import progress
from tasks._wiring import current_settings, step

if TYPE_CHECKING:
    from prefect_dask.task_runners import DaskTaskRunner


# A task of its own: a shard is sent with the parameters of the task that it is submitted from,
# and those of ``evaluate_arms`` hold an open database.
@step("answer in shards")
def answer_in_shards(
    spec: EvalSpec,
    names: tuple[ArmName, ...],
    test_set: Path,
    adapter: Adapter | None,
    out_dir: Path,
) -> None:
    """Put the answers of the local arms into ``out_dir``, where ``evaluate`` finds them.

    Dask gives the shard of a worker that died to another one, which makes what is missing; the
    other shards are not touched.

    Raises:
        MissingDependency: the extra ``fanout`` is not installed.
        EvaluationError: a shard failed for good. Answers made so far are kept.
    """
    from slm_core.dataset.test_sets import read_test_set

    shards = split(read_test_set(test_set), spec.shards, spec.evaluation)
    local: list[ArmName] = [name for name in names if name != "teacher"]
    runner = _task_runner(spec, len(shards))
    failed: list[str] = []
    with progress("answer in shards") as on_progress, runner:
        futures = {
            (name, number): runner.submit(
                answer_shard,
                {
                    "spec": spec,
                    "name": name,
                    "number": number,
                    "test_set": test_set.absolute(),
                    "adapter": adapter,
                    "folder": _folder(out_dir, number),
                },
            )
            for name in local
            for number in range(len(shards))
        }
        for done, ((name, number), future) in enumerate(futures.items(), start=1):
            try:
                future.result()
            except Exception as error:  # of whatever kind: the other shards must go on
                failed.append(f"{name}, shard {number}: {type(error).__name__}: {error}")
            on_progress(done, len(futures), name)
    for name in local:
        gather(name, [_folder(out_dir, number) for number in range(len(shards))], out_dir)
    if failed:
        raise EvaluationError(
            f"{len(failed)} of {len(futures)} shards were not answered. The other answers are "
            "saved; run the evaluation again to make the rest. First: " + failed[0],
            failed=failed,
        )


@step("answer a shard")
def answer_shard(
    spec: EvalSpec,
    name: ArmName,
    number: int,
    test_set: Path,
    adapter: Adapter | None,
    folder: Path,
) -> int:
    """Answer what the folder of one shard lacks; return how many answers it holds."""
    from slm_core.dataset.test_sets import read_test_set

    shard = split(read_test_set(test_set), spec.shards, spec.evaluation)[number]
    return answer(named_arm(name, spec, adapter), shard, spec.evaluation, folder)


def _folder(out_dir: Path, number: int) -> Path:
    return out_dir.absolute() / "shards" / str(number)


def _task_runner(spec: EvalSpec, workers: int) -> DaskTaskRunner:
    try:
        from prefect_dask.task_runners import DaskTaskRunner
    except ImportError as error:
        raise MissingDependency.of_extra(
            "fanout",
            f"An evaluation in {spec.shards} shards needs prefect-dask; shards=1 does not",
            error,
        ) from error
    if (address := current_settings().dask_scheduler) is not None:
        return DaskTaskRunner(address=address)
    return DaskTaskRunner(
        cluster_kwargs={
            "n_workers": workers,
            "threads_per_worker": 1,
            "processes": True,
            "dashboard_address": None,
        }
    )
