"""Dataset to adapter."""

from __future__ import annotations

from pathlib import Path

from slm_core.errors import TrainingError, WorkerDied
from slm_core.records import Adapter, Attempt, Dataset, RunState, TrainingRun
from slm_core.training import TrainingSpec, train
from tasks._progress import progress
from tasks._wiring import opened_store, run_folder, step


@step("train the adapter")
def train_adapter(spec: TrainingSpec, dataset: Dataset, run_id: str) -> Adapter:
    """Train, or take up where an earlier attempt of this run left off; every attempt is kept."""
    folder = run_folder(run_id) / "training"
    run = TrainingRun(
        id=run_id,
        dataset_id=dataset.id,
        spec_digest=spec.digest(),
        path=str(folder),
        state=RunState.RUNNING,
    )
    with opened_store() as store:
        run = store.runs.save(run)
        attempts = {attempt.number: attempt for attempt in run.attempts}

        def keep(attempt: Attempt) -> None:
            attempts[attempt.number] = attempt
            settle(RunState.RUNNING)

        def settle(state: RunState, adapter_id: str | None = None) -> None:
            store.runs.update(
                run.model_copy(
                    update={
                        "attempts": tuple(attempts[n] for n in sorted(attempts)),
                        "state": state,
                        "adapter_id": adapter_id,
                    }
                )
            )

        try:
            with progress("train") as on_progress:
                adapter = train(
                    spec,
                    dataset_path=Path(dataset.path),
                    dataset_id=dataset.id,
                    run_dir=folder,
                    run_id=run_id,
                    on_progress=on_progress,
                    on_attempt=keep,
                )
        except TrainingError as error:
            died = isinstance(error, WorkerDied)
            settle(RunState.INTERRUPTED if died else RunState.FAILED)
            raise
        except BaseException:
            settle(RunState.INTERRUPTED)
            raise
        adapter = store.adapters.save(adapter)
        settle(RunState.COMPLETED, adapter.id)
        return adapter


@step("find the adapter")
def find_adapter(adapter_id: str | None) -> Adapter | None:
    """Return the adapter of that id; without an id the one trained last, if there is any."""
    with opened_store() as store:
        if adapter_id is not None:
            return store.adapters.get(adapter_id)
        return max(store.adapters.list(), key=lambda a: a.created_at, default=None)
