"""Train one adapter in worker processes, or take up where an earlier call left off.

This side decides and records; it never imports torch. Each attempt is a set of worker
processes of its own. When one ends early, the fault is named, the GPUs are examined, and
``recovery.py`` says how the next attempt goes on, or why there is none. What it refuses: a
base model or dataset that is not what it claims to be, another spec than the run began
with, and a run directory in which another trainer is at work.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from slm_core.backends.adapter_folder import read_adapter
from slm_core.backends.model_folder import check_model_folder, locate_model
from slm_core.errors import (
    GpuFault,
    ModelError,
    RecoveryExhausted,
    SlmError,
    SpecChanged,
    WorkerDied,
)
from slm_core.records import Adapter, Fault, Triage
from slm_core.training import checkpoints
from slm_core.training.attempts import AttemptLog, OnAttempt
from slm_core.training.autopsy import Scene, Verdict, find_cause
from slm_core.training.checkpoints import Checkpoint
from slm_core.training.doctor import Doctor
from slm_core.training.events import EventFile, StepEvent, forget_after
from slm_core.training.recovery import (
    NEEDS_TRIAGE,
    NEVER_RETRIED,
    Stop,
    history_of,
    next_plan,
    resumed_plan,
)
from slm_core.training.rows import verify_files
from slm_core.training.run_folder import Identity, Job, RunFolder
from slm_core.training.spec import TrainingSpec
from slm_core.training.supervise import DEFAULT_LIMITS, Limits, run_ranks

log = logging.getLogger(__name__)

OnProgress = Callable[[int, int, str], None]

_THE_GPU = NEEDS_TRIAGE | {"cuda_error"}
_MAY_BE_THE_GPU = frozenset({"worker_killed", "worker_crashed", "hung"})


def train(
    spec: TrainingSpec,
    *,
    dataset_path: Path,
    dataset_id: str,
    run_dir: Path,
    run_id: str,
    gpus: Sequence[str] = (),
    doctor: Doctor | None = None,
    on_progress: OnProgress | None = None,
    on_attempt: OnAttempt | None = None,
    usd_per_hour: float | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Adapter:
    """Fine-tune a LoRA adapter and return its record.

    A finished run returns its adapter at once. An interrupted one continues from its
    newest sound checkpoint with the plan it had reached, on a CPU to the very same bits as
    an unbroken run.

    Args:
        spec: what to learn and how.
        dataset_path: folder with ``train.jsonl`` and, optionally, ``val.jsonl`` and
            ``manifest.json``.
        dataset_id: id of that dataset; becomes part of the adapter's id.
        run_dir: this run's own folder; made if absent.
        run_id: id of the run, written into the adapter's record.
        gpus: names of the GPUs that may be used; none leaves it to what the worker sees.
        doctor: watches the GPUs and examines them after a fault.
        on_progress: called with (steps done, steps in all, what) at every logged step.
        on_attempt: called when an attempt begins, when its worker changed something by
            itself, when it has ended, and when an examination added to what is known.
        usd_per_hour: price of this machine with all its GPUs; without it the cost stays unknown.
        limits: how long to wait for what.

    Raises:
        ModelError: the base model is missing, incomplete or not what it claims to be.
        MissingDependency: it is a hub id, and huggingface_hub is not installed.
        DatasetError: the dataset is, or some rows would have to be cut.
        SpecChanged: the run began with another spec, dataset, base model, chat
            template or tokenizer.
        RunBusy: another trainer is at work in ``run_dir``.
        CheckpointCorrupt: the run has checkpoints, and none verifies.
        TrainingDiverged: loss or gradient became infinite or not a number.
        DiskFull: a file of the run could not be written.
        GpuFault: a GPU or its driver failed; the next action is in the context.
        RecoveryExhausted: every way to go on was tried; the history is in the context.
        WorkerDied: somebody stopped the worker; calling again resumes.
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
        attempts = AttemptLog(run, on_attempt)
        if not run.adapter.is_dir():
            trainer = _Trainer(run, lock, attempts, doctor, on_progress, usd_per_hour, limits)
            trainer.train(identity, dataset_path.resolve(), model_folder, tuple(gpus))
        return _finished_adapter(run)


class _Trainer:
    """Starts attempt after attempt until one finishes or nothing is left to try."""

    def __init__(
        self,
        run: RunFolder,
        lock: int,
        attempts: AttemptLog,
        doctor: Doctor | None,
        on_progress: OnProgress | None,
        usd_per_hour: float | None,
        limits: Limits,
    ) -> None:
        self._run = run
        self._lock = lock
        self._attempts = attempts
        self._doctor = doctor
        self._on_progress = on_progress
        self._usd_per_hour = usd_per_hour
        self._limits = limits
        self._last_step = 0

    def train(
        self, identity: Identity, dataset_path: Path, model_folder: Path, gpus: tuple[str, ...]
    ) -> None:
        """Return only when a worker has finished the run."""
        spec, attempts = identity.spec, self._attempts
        plan, reason = resumed_plan(spec, attempts.last_plan, gpus), ""
        while True:
            checkpoint = self._checkpoint(identity)
            step = checkpoint.step if checkpoint else 0
            job = Job(
                identity=identity,
                attempt=attempts.next_number,
                parent_pid=os.getpid(),
                dataset_path=str(dataset_path),
                model_folder=str(model_folder),
                resume_from=str(checkpoint.path) if checkpoint else None,
                plan=plan,
                usd_per_hour=self._usd_per_hour,
            )
            verdict = self._attempt(job, step, reason)
            # A worker that died after it had published leaves nothing to do.
            if verdict is None or self._run.adapter.is_dir():
                return
            fault, triage = verdict.fault, self._examine(spec, job, verdict)
            decision = next_plan(
                spec, plan, fault, attempts.present, triage, earlier=attempts.earlier
            )
            if isinstance(decision, Stop):
                raise self._error(decision, verdict, spec)
            plan, reason = decision
            log.warning("training goes on attempt=%d: %s", attempts.next_number, reason)

    def _checkpoint(self, identity: Identity) -> Checkpoint | None:
        checkpoint = checkpoints.newest(self._run.checkpoints)
        if checkpoint and checkpoint.state["spec_digest"] != identity.spec_digest:
            raise SpecChanged(f"{checkpoint.path} was written under another spec.")
        return checkpoint

    def _attempt(self, job: Job, first_step: int, reason: str) -> Verdict | None:
        """Let the plan's workers do their best; return why they failed, None if they did not."""
        run, attempts = self._run, self._attempts
        run.write_job(job)
        forget_after(run.events, first_step)
        attempts.begin(job, first_step, reason)
        self._last_step = first_step
        before = Scene.now(run)
        events = EventFile(run.events)
        events.read_new()  # the steps before the checkpoint were reported by an earlier attempt
        try:
            ended = run_ranks(
                run,
                job.plan,
                self._lock,
                events,
                self._on_event,
                doctor=self._doctor,
                limits=self._limits,
            )
        except BaseException as error:
            message = f"stopped by {type(error).__name__}"
            step = self._last_step
            attempts.end(step, Fault(kind="interrupted", message=message, step=step))
            raise
        last_step = max(self._last_step, ended.last_step)
        verdict = find_cause(run, before, ended, last_step)
        attempts.end(last_step, verdict.fault if verdict else None)
        return verdict

    def _on_event(self, event: StepEvent) -> None:
        self._last_step = event.step
        self._attempts.look()
        if self._on_progress:
            self._on_progress(event.step, event.total_steps, _describe(event))

    def _examine(self, spec: TrainingSpec, job: Job, verdict: Verdict) -> Triage | None:
        """Ask the doctor about a fault that may be the GPU's, and write down the answer."""
        fault = verdict.fault
        # A machine without GPUs would look as if it had lost them all.
        on_gpus = bool(job.plan.gpus) and spec.device != "cpu"
        suspected = fault.kind in _THE_GPU or (on_gpus and fault.kind in _MAY_BE_THE_GPU)
        if self._doctor is None or not suspected:
            return None
        triage = self._doctor.examine(fault, verdict.words, job.plan.gpus)
        details = {**fault.details, "triage": triage.model_dump(mode="json")}
        known = fault.model_copy(update={"details": details})
        self._attempts.end(self._attempts.all[-1].last_step, known)
        return triage

    def _error(self, stop: Stop, verdict: Verdict, spec: TrainingSpec) -> SlmError:
        """Return what the end of the run means to the caller."""
        fault, refusal = verdict.fault, verdict.refusal
        about = {
            "last_step": fault.step,
            "history": history_of(self._attempts.all),
            "log": str(self._run.log),
            "log_tail": verdict.words,
        }
        if stop.triage is not None:
            action, commands = stop.triage.action.value, stop.triage.commands
            return GpuFault(stop.reason, action=action, commands=commands, **about)
        if fault.kind in NEEDS_TRIAGE:
            return GpuFault(stop.reason, action=None, commands=(), **about)
        if fault.kind == "interrupted":
            again = "Train again: the run resumes from its newest checkpoint."
            return WorkerDied(f"{fault.message} {again}", exit_code=fault.exit_code, **about)
        if refusal is not None and (fault.kind in NEVER_RETRIED or spec.on_oom == "stop"):
            return refusal
        return RecoveryExhausted(stop.reason, kind=fault.kind, **about)


def _finished_adapter(run: RunFolder) -> Adapter:
    """Return the finished adapter's record after comparing the weights with it."""
    try:
        adapter = read_adapter(run.adapter)
    except ModelError as error:
        raise ModelError(
            f"{error.message} To train it again, remove {run.adapter}.", **error.context
        ) from error
    # The run directory may have been moved since.
    return adapter.model_copy(update={"path": str(run.adapter)})


def _describe(event: StepEvent) -> str:
    said = f"loss {event.loss:.4f}, {event.tokens_per_second:,.0f} tokens/s"
    if event.val_loss is not None:
        said += f", validation loss {event.val_loss:.4f}"
    return said
