"""A training with its record kept: every attempt, how it stands, and the adapter in the end.

The store is handed in, since this stage does not know it; a flow and the command line train
through the same lines.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from slm_core.errors import RunBusy
from slm_core.records import Adapter, Attempt, Dataset, RunState, TrainingRun
from slm_core.training.doctor import Doctor
from slm_core.training.orders import state_after
from slm_core.training.spec import TrainingSpec
from slm_core.training.train import OnProgress, train

log = logging.getLogger(__name__)


class Runs(Protocol):
    """Where runs are kept."""

    def save(self, record: TrainingRun, /) -> TrainingRun: ...
    def update(self, run: TrainingRun, /) -> TrainingRun: ...


class Adapters(Protocol):
    """Where adapters are kept."""

    def save(self, record: Adapter, /) -> Adapter: ...


def train_recorded(
    spec: TrainingSpec,
    *,
    runs: Runs,
    adapters: Adapters,
    dataset: Dataset,
    folder: Path,
    run_id: str,
    gpus: Sequence[str] = (),
    doctor: Doctor | None = None,
    on_progress: OnProgress | None = None,
    on_attempts: Callable[[tuple[Attempt, ...]], None] | None = None,
    usd_per_hour: float | None = None,
) -> Adapter:
    """Train, or take up where an earlier attempt of this run left off; keep every attempt.

    Args:
        spec: what to learn and how.
        runs: the store's runs.
        adapters: the store's adapters.
        dataset: to learn from.
        folder: the run's own folder; made if absent.
        run_id: id of the run.
        gpus: UUIDs to use; empty leaves it to the worker.
        doctor: watches and examines the GPUs.
        on_progress: see ``train``.
        on_attempts: told all attempts whenever one begins or ends.
        usd_per_hour: see ``train``.

    Raises:
        SlmError: see ``train``; the run's record says how it stands.
        StoreUnavailable: the store did not answer at the beginning or at the end.
    """
    run = runs.save(
        TrainingRun(
            id=run_id,
            dataset_id=dataset.id,
            spec_digest=spec.digest(),
            path=str(folder),
            state=RunState.RUNNING,
        )
    )
    attempts = {attempt.number: attempt for attempt in run.attempts}

    def keep(attempt: Attempt) -> None:
        attempts[attempt.number] = attempt
        try_to_settle(RunState.RUNNING)
        if on_attempts:
            on_attempts(in_order())

    def in_order() -> tuple[Attempt, ...]:
        return tuple(attempts[number] for number in sorted(attempts))

    def settle(state: RunState, adapter_id: str | None = None) -> None:
        update = {"attempts": in_order(), "state": state, "adapter_id": adapter_id}
        runs.update(run.model_copy(update=update))

    def try_to_settle(state: RunState) -> None:
        # A store that is gone must neither end a training nor hide what ended it.
        try:
            settle(state)
        except Exception as problem:
            log.error("run not written down id=%s state=%s: %s", run_id, state, problem)

    try:
        adapter = train(
            spec,
            dataset_path=Path(dataset.path),
            dataset_id=dataset.id,
            run_dir=folder,
            run_id=run_id,
            gpus=gpus,
            doctor=doctor,
            on_progress=on_progress,
            on_attempt=keep,
            usd_per_hour=usd_per_hour,
        )
    except RunBusy:
        raise  # the one at work keeps the record
    except BaseException as error:
        try_to_settle(state_after(error))
        raise
    adapter = adapters.save(adapter)
    settle(RunState.COMPLETED, adapter.id)
    return adapter
