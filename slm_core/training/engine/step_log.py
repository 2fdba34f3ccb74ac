"""Writes each logged step to ``events.jsonl`` and to TensorBoard. Imports torch."""

from __future__ import annotations

import os
import time
from types import TracebackType

import torch
from torch.utils.tensorboard import SummaryWriter

from slm_core.training.convergence import Note, perplexity
from slm_core.training.engine.loop import StepResult
from slm_core.training.events import StepEvent, line
from slm_core.training.run_folder import RunFolder

_FLUSH_SECONDS = 10


class StepLog:
    """The log of one attempt; a context manager that closes both files."""

    def __init__(
        self, run: RunFolder, *, first_step: int, total_steps: int, writes: bool = True
    ) -> None:
        self._total_steps = total_steps
        self._first_step = first_step
        self._started = time.monotonic()
        self._tokens, self._seconds = 0, 0.0
        self._writes = writes
        if not writes:
            return
        self._events = run.events.open("ab")
        # Scalars of steps that a killed attempt took and this one takes again are hidden.
        self._board = SummaryWriter(
            str(run.tensorboard),
            purge_step=first_step + 1 if first_step else None,
            flush_secs=_FLUSH_SECONDS,
        )

    def __enter__(self) -> StepLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writes:
            self._events.close()
            self._board.close()

    def sync(self) -> None:
        """Wait until the disk has the events: a checkpoint must not be ahead of them."""
        if self._writes:
            os.fsync(self._events.fileno())

    def note(self, note: Note) -> None:
        """Show something odd about the curves beside them."""
        if self._writes:
            self._board.add_text(f"notes/{note.kind}", note.message, note.step)

    def add(self, result: StepResult, val_loss: float | None, *, due: bool) -> None:
        """Count a step; write it down when ``due``."""
        self._tokens += result.tokens
        self._seconds += result.seconds
        if not (due and self._writes) or result.loss is None or result.grad_norm is None:
            return
        per_step = (time.monotonic() - self._started) / (result.step - self._first_step)
        event = StepEvent(
            step=result.step,
            epoch=result.epoch,
            loss=result.loss,
            grad_norm=result.grad_norm,
            learning_rate=result.learning_rate,
            tokens_per_second=self._tokens / self._seconds,
            val_loss=val_loss,
            total_steps=self._total_steps,
            eta_seconds=per_step * (self._total_steps - result.step),
            gpu_bytes=_peak_gpu_bytes(),
        )
        self._tokens, self._seconds = 0, 0.0
        self._events.write(line(event))
        self._events.flush()
        scalars = {
            "train/loss": event.loss,
            "train/perplexity": perplexity(event.loss),
            "train/grad_norm": event.grad_norm,
            "train/learning_rate": event.learning_rate,
            "train/tokens_per_second": event.tokens_per_second,
            "val/loss": event.val_loss,
            "val/perplexity": perplexity(event.val_loss),
        }
        for name, value in scalars.items():
            if value is not None:
                self._board.add_scalar(name, value, event.step)


def _peak_gpu_bytes() -> int | None:
    # Never the call that would first open a device.
    return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None
