"""Train one adapter in a worker process, or take up where an earlier call left off.

This side decides and records; it never imports torch. What it refuses: a base model or
dataset that is not what it claims to be, another spec than the run began with, and a run
directory in which another trainer is at work.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from slm_core.backends.model_folder import check_model_folder, file_sha256, locate_model
from slm_core.errors import ModelError, SpecChanged
from slm_core.records import Adapter, Attempt, Fault, utc_now
from slm_core.training import checkpoints
from slm_core.training.events import EventFile, StepEvent, forget_after
from slm_core.training.faults import ExitCode, error_of, fault_of, read_error
from slm_core.training.plan import first_plan
from slm_core.training.rows import verify_files
from slm_core.training.run_folder import Identity, Job, RunFolder
from slm_core.training.spec import TrainingSpec
from slm_core.training.supervise import run_worker

log = logging.getLogger(__name__)

OnProgress = Callable[[int, int, str], None]
OnAttempt = Callable[[Attempt], None]


def train(
    spec: TrainingSpec,
    *,
    dataset_path: Path,
    dataset_id: str,
    run_dir: Path,
    run_id: str,
    on_progress: OnProgress | None = None,
    on_attempt: OnAttempt | None = None,
) -> Adapter:
    """Fine-tune a LoRA adapter and return its record.

    A finished run returns its adapter at once. An interrupted one continues from its
    newest sound checkpoint, on a CPU to the very same bits as an unbroken run.

    Args:
        spec: what to learn and how.
        dataset_path: folder with ``train.jsonl`` and, optionally, ``val.jsonl`` and
            ``manifest.json``.
        dataset_id: id of that dataset; becomes part of the adapter's id.
        run_dir: this run's own folder; made if absent.
        run_id: id of the run, written into the adapter's record.
        on_progress: called with (steps done, steps in all, what) at every logged step.
        on_attempt: called when a worker process begins and again when it has ended.

    Raises:
        ModelError: the base model is missing, incomplete or not what it claims to be.
        DatasetError: the dataset is, or some rows would have to be cut.
        SpecChanged: the run began with another spec, dataset or base model.
        RunBusy: another trainer is at work in ``run_dir``.
        CheckpointCorrupt: the run has checkpoints, and none verifies.
        TrainingDiverged: loss or gradient became infinite or not a number.
        WorkerDied: the worker was killed or crashed; calling again resumes.
    """
    model_folder = locate_model(spec.base_model)
    identity = Identity(
        run_id=run_id,
        dataset_id=dataset_id,
        files=verify_files(dataset_path),
        base_sha256=check_model_folder(model_folder),
        spec_digest=spec.digest(),
        spec=spec,
    )
    run = RunFolder(run_dir)
    with run.lock() as lock:
        run.settle_identity(identity)
        attempts = _Attempts(run, on_attempt)
        if not run.adapter.is_dir():
            checkpoint = checkpoints.newest(run.checkpoints)
            if checkpoint and checkpoint.state["spec_digest"] != identity.spec_digest:
                raise SpecChanged(f"{checkpoint.path} was written under another spec.")
            job = Job(
                identity=identity,
                attempt=attempts.next_number,
                parent_pid=os.getpid(),
                dataset_path=str(dataset_path.resolve()),
                model_folder=str(model_folder),
                resume_from=str(checkpoint.path) if checkpoint else None,
                plan=first_plan(spec),
            )
            first_step = checkpoint.step if checkpoint else 0
            _run_attempt(run, lock, job, first_step, attempts, on_progress)
        return _read_adapter(run)


def _run_attempt(
    run: RunFolder,
    lock: int,
    job: Job,
    first_step: int,
    attempts: _Attempts,
    on_progress: OnProgress | None,
) -> None:
    """Let one worker do its best; return only when it has finished the run."""
    run.write_job(job)
    forget_after(run.events, first_step)
    attempts.begin(job, first_step)
    last_step = first_step

    def on_event(event: StepEvent) -> None:
        nonlocal last_step
        last_step = event.step
        if on_progress:
            on_progress(event.step, event.total_steps, _describe(event))

    events = EventFile(run.events)
    events.read_new()  # the steps before the checkpoint were reported by an earlier call
    try:
        code = run_worker(run, lock, events, on_event)
    except BaseException as reason:
        message = f"stopped by {type(reason).__name__}"
        attempts.end(last_step, Fault(kind="interrupted", message=message, step=last_step))
        raise
    if code == ExitCode.DONE:
        attempts.end(last_step, None)
        return
    error = error_of(code, read_error(run.error), last_step, run.log)
    attempts.end(last_step, fault_of(error, last_step, code))
    raise error


class _Attempts:
    """The run's attempts, on disk after every change and told to the caller."""

    def __init__(self, run: RunFolder, on_attempt: OnAttempt | None) -> None:
        self._run = run
        self._tell = on_attempt
        self._all = run.read_attempts()
        if self._all and self._all[-1].ended_at is None:
            fault = Fault(kind="trainer_killed", message="the process that watched it was killed")
            self.end(self._all[-1].last_step, fault)

    @property
    def next_number(self) -> int:
        return len(self._all) + 1

    def begin(self, job: Job, first_step: int) -> None:
        attempt = Attempt(
            number=job.attempt,
            started_at=utc_now(),
            first_step=first_step,
            last_step=first_step,
            plan=job.plan.model_dump(mode="json"),
        )
        self._all.append(attempt)
        self._changed()

    def end(self, last_step: int, fault: Fault | None) -> None:
        update = {"ended_at": utc_now(), "last_step": last_step, "fault": fault}
        self._all[-1] = self._all[-1].model_copy(update=update)
        self._changed()

    def _changed(self) -> None:
        self._run.write_attempts(self._all)
        if self._tell:
            self._tell(self._all[-1])


def _read_adapter(run: RunFolder) -> Adapter:
    """Return the finished adapter's record after comparing the weights with it."""
    record = run.adapter / "slm_adapter.json"
    weights = run.adapter / "adapter_model.safetensors"
    if not record.is_file() or not weights.is_file():
        raise ModelError(f"The adapter in {run.adapter} is incomplete; remove it and train again.")
    adapter = Adapter.model_validate_json(record.read_bytes())
    found = file_sha256(weights)
    if found != adapter.weights_sha256:
        raise ModelError(
            f"The weights in {run.adapter} are not those that were trained; remove the folder "
            "and train again.",
            expected=adapter.weights_sha256,
            found=found,
        )
    # The run directory may have been moved since.
    return adapter.model_copy(update={"path": str(run.adapter)})


def _describe(event: StepEvent) -> str:
    said = f"loss {event.loss:.4f}, {event.tokens_per_second:,.0f} tokens/s"
    if event.val_loss is not None:
        said += f", validation loss {event.val_loss:.4f}"
    return f"{said}, {event.eta_seconds:.0f} s left"
