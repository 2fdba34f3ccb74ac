"""The course of a run: when it validates, saves and ends, and what is known at the end.
Imports torch."""

from __future__ import annotations

import json
import logging
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from slm_core.errors import SpecChanged
from slm_core.training import checkpoints
from slm_core.training.convergence import EarlyStopping, Note, Watch
from slm_core.training.durable import write_json
from slm_core.training.engine.loop import Counters, Loop, StepResult
from slm_core.training.engine.model_shape import shape_of
from slm_core.training.engine.ranks import Ranks
from slm_core.training.engine.student import Student
from slm_core.training.events import StepEvent, read_events
from slm_core.training.rows import Rows
from slm_core.training.run_folder import Job, RunFolder
from slm_core.training.schedule import Schedule
from slm_core.training.summary import EPOCHS_DONE, Finished, build_summary
from slm_core.training.throughput import attention_flops, matrix_flops

log = logging.getLogger(__name__)


class Course:
    """Everything about a run that outlives its attempts, except the weights."""

    def __init__(
        self,
        run: RunFolder,
        job: Job,
        loop: Loop,
        ranks: Ranks,
        train: Rows,
        val: Rows,
        *,
        prompts: Mapping[str, str | None],
    ) -> None:
        """``prompts``: hashes of what turned the examples into tokens, by name."""
        self._run = run
        self._job = job
        self._loop = loop
        self._ranks = ranks
        self._train = train
        self._val = val
        self._val_rows = val.kept
        self._prompts = dict(prompts)
        self._spec = job.identity.spec
        self._stopping = EarlyStopping(self._spec.patience, self._spec.min_improvement)
        self._watch = Watch()
        self._notes: list[Note] = []
        self._recoveries: list[str] = []

    @property
    def stop_reason(self) -> str | None:
        """Why the run should end before its last step; None when it should go on."""
        return self._stopping.reason

    def resume(self) -> None:
        """Go on after the checkpoint that the job names, if it names one.

        Raises:
            SpecChanged: it was trained on other prompts.
        """
        if self._job.resume_from is None:
            return
        path = Path(self._job.resume_from)
        state = json.loads((path / checkpoints.STATE).read_text("utf-8"))
        self._refuse_other_prompts(path, state)
        counted = state["counters"]
        # An older checkpoint does not say it: then the GPUs of now must do.
        gpu_seconds = counted["seconds"] * self._ranks.world_size
        counters = Counters(**{"gpu_seconds": gpu_seconds, **counted})
        before = state["rows_per_step"]
        if before != self._job.plan.rows_per_step:
            # The same place in the data has another step number now.
            lengths = [row.planned for row in self._train.rows]
            place = Schedule(lengths, self._spec, before).position(counters.step)
            counters = counters._replace(step=self._loop.schedule.step_at(place))
        self._loop.restore(path, counters)
        if self._ranks.leads:
            checkpoints.forget_best_after(self._run.checkpoints, counters.step)
        spec = self._spec
        if state["compared"] == self._comparable():
            # Losses over other rows or of another base precision compare with nothing.
            self._stopping = EarlyStopping.from_state(
                state["early_stopping"], spec.patience, spec.min_improvement
            )
        self._watch = Watch.from_state(state["watch"])
        self._notes = [Note(*note) for note in state["notes"]]

    def reads(self, step: int) -> bool:
        """Whether the loss of ``step`` is read and logged."""
        last = step == self._loop.schedule.total_steps
        due = step % self._spec.log_every_steps == 0
        return last or due or self._measures(step) or self.saves(step)

    def saves(self, step: int) -> bool:
        """Whether ``step`` is followed by a checkpoint."""
        return step % self._spec.save_every_steps == 0

    def validate(self, step: int) -> float | None:
        """Measure the validation loss after ``step`` if it is time."""
        if not self._measures(step):
            return None
        return self._loop.validation_loss(self._val_rows)

    def keep_best(self, step: int, loss: float) -> None:
        """Keep the weights of ``step`` if its validation loss is the best so far."""
        if self._stopping.add(step, loss) and self._spec.restore_best:
            self.save("best-")

    def watch(self, result: StepResult) -> list[Note]:
        """Return what is new about the curves of loss and gradient norm."""
        if result.loss is None or result.grad_norm is None:
            return []
        notes = self._watch.add(result.step, result.loss, result.grad_norm)
        for note in notes:
            log.warning("step=%d %s: %s", note.step, note.kind, note.message)
        self._notes += notes
        return notes

    def recovered(self, step: int, rung: str, message: str, details: dict[str, Any]) -> None:
        """Write down what this worker changed by itself, for the parent."""
        line = {
            "attempt": self._job.attempt,
            "rank": self._ranks.rank,
            "step": step,
            "rung": rung,
            "message": message,
            "details": details,
        }
        with self._run.recoveries.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._recoveries.append(message)

    def save(self, name_prefix: checkpoints.Prefix = "step-") -> None:
        """Write a checkpoint of the last finished step."""
        if not self._ranks.leads or self._loop.counters.step == 0:
            return
        self._loop.refuse_divergence()
        counters = self._loop.counters
        position = self._loop.schedule.position(counters.step)
        state: dict[str, Any] = {
            "counters": counters._asdict(),
            "epoch": position.epoch,
            "rows_into_epoch": position.rows,
            "rows_per_step": self._job.plan.rows_per_step,
            "compared": self._comparable(),
            "seed": self._spec.seed,
            "spec_digest": self._job.identity.spec_digest,
            "prompts": self._prompts,
            "early_stopping": self._stopping.as_state(),
            "watch": self._watch.as_state(),
            "notes": self._notes,
        }
        # Two of the best: the newer may belong to steps that a resumed run takes otherwise.
        keep = self._spec.keep_checkpoints if name_prefix == "step-" else 2
        checkpoints.save(
            self._run.checkpoints,
            counters.step,
            self._loop.state_files(),
            state,
            keep=keep,
            name_prefix=name_prefix,
        )

    def events(self) -> list[StepEvent]:
        """Return every logged step of the run."""
        return read_events(self._run.events)

    def summary(self, student: Student) -> dict[str, Any]:
        """Put the best weights in place if asked to, and return the totals of the run."""
        published = self._restore_best()
        counters, plan = self._loop.counters, self._loop.passes.plan
        on_gpu = student.device.type == "cuda"
        # Linux counts in KiB, macOS in bytes.
        unit = 1 if sys.platform == "darwin" else 1024
        summary = build_summary(
            Finished(
                spec=self._spec,
                plan=plan,
                train=self._train,
                val=self._val,
                steps=counters.step,
                tokens=counters.tokens,
                supervised_tokens=counters.supervised_tokens,
                seconds=counters.seconds,
                gpu_seconds=counters.gpu_seconds,
                flops=self._flops(student, counters) if on_gpu else None,
                events=self.events(),
                notes=self._notes,
                early_stopping=self._stopping,
                stop_reason=self.stop_reason or EPOCHS_DONE,
                published_step=published,
                attempts=self._run.read_attempts(),
                attempt=self._job.attempt,
                recoveries=self._recoveries,
                usd_per_hour=self._job.usd_per_hour,
                trainable_parameters=sum(p.numel() for p in student.trainable.values()),
                device=torch.cuda.get_device_name() if on_gpu else "cpu",
                precision=str(student.precision).removeprefix("torch."),
                threads=torch.get_num_threads(),
                peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
                peak_gpu_bytes=torch.cuda.max_memory_allocated() if on_gpu else None,
            )
        )
        write_json(self._run.summary, summary)
        return summary

    def _refuse_other_prompts(self, path: Path, state: dict[str, Any]) -> None:
        """The base model's hash is that of its weights; template and tokenizer are none of them."""
        before = state.get("prompts", self._prompts)  # older checkpoints have none
        if before != self._prompts:
            raise SpecChanged(
                f"{path} was trained with another chat template, context prefix or tokenizer. Put "
                "back what the run began with, or train in a new run directory.",
                expected=before,
                found=self._prompts,
            )

    def _comparable(self) -> dict[str, Any]:
        """Return what two validation losses must have in common to be compared."""
        plan = self._job.plan
        return {"quantization": plan.quantization, "max_length": plan.max_length}

    def _measures(self, step: int) -> bool:
        if not self._val_rows:
            return False
        schedule, every = self._loop.schedule, self._spec.eval_every_steps
        due = schedule.ends_epoch(step) if every is None else step % every == 0
        return due or step == schedule.total_steps

    def _restore_best(self) -> int | None:
        """Return the step whose weights are in place now; None for the last."""
        if not (self._spec.restore_best and self._val_rows):
            return None
        best = checkpoints.best(self._run.checkpoints)
        # Another one was written by an attempt that died later than this run remembers.
        if best is None or best.step != self._stopping.best_step:
            return None
        if best.step == self._loop.counters.step:
            return None
        self._loop.restore_weights(best.path)
        log.info("best weights restored step=%d", best.step)
        return best.step

    def _flops(self, student: Student, counters: Counters) -> float:
        shape = shape_of(student.model)
        lengths = [len(row.ids) for row in self._train.rows]
        attention = attention_flops(shape, lengths) * counters.tokens / sum(lengths)
        return matrix_flops(shape, counters.tokens, counters.supervised_tokens) + attention
