"""The training loop: one optimizer step at a time, and its whole state. Imports torch.

The loss of a step is the sum over its supervised tokens divided by their number, counted
over the whole step and all workers, so that it does not matter how the step's rows are split
into passes. Row order, learning rate and dropout are functions of (seed, step): the step
number, the adapter and the optimizer's moments are all that a checkpoint needs.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from slm_core.errors import TrainingDiverged
from slm_core.training.engine.batches import Numbered
from slm_core.training.engine.passes import Passes
from slm_core.training.engine.ranks import Ranks
from slm_core.training.engine.student import Student
from slm_core.training.plan import Plan
from slm_core.training.rows import Row
from slm_core.training.schedule import Schedule, dropout_seed
from slm_core.training.spec import TrainingSpec

WEIGHTS, MOMENTS = "adapter.safetensors", "optimizer.safetensors"
_REMEMBERED_LOSSES = 5


class StepResult(NamedTuple):
    """What one optimizer step did."""

    step: int
    epoch: float
    loss: float | None
    """None where it was not read: reading waits for the GPU. None too where there is none,
    because every row of the step was dropped as too long for the plan."""
    grad_norm: float | None
    """Before clipping."""
    learning_rate: float
    tokens: int
    """Read in this step by all workers, prompt and answer, without padding."""
    seconds: float
    asked_to_stop: bool
    """Whether any worker was."""


class Counters(NamedTuple):
    """Totals over all attempts of a run."""

    step: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    seconds: float = 0.0
    gpu_seconds: float = 0.0
    """The same, times the workers that each step had."""


class Loop:
    """One run over its rows."""

    def __init__(
        self,
        student: Student,
        rows: Sequence[Row],
        spec: TrainingSpec,
        plan: Plan,
        *,
        ranks: Ranks | None = None,
        asked_to_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.schedule = Schedule([row.planned for row in rows], spec, plan.rows_per_step)
        self.counters = Counters()
        self._student = student
        self._rows = rows
        self.spec = spec
        self._ranks = ranks or Ranks()
        self._asked_to_stop = asked_to_stop
        longest = max(len(row.ids) for row in rows)
        self.passes = Passes(student, spec, plan, self._ranks, longest=longest)
        self._parameters = student.trainable
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(),
            lr=spec.learning_rate,
            weight_decay=spec.weight_decay,
            fused=True,
        )
        self._make_moments()
        # Set to 1 by the first step that is not finite; from then on nothing is updated.
        self._broken = torch.zeros((), device=student.device)
        self._losses: deque[float] = deque(maxlen=_REMEMBERED_LOSSES)

    def steps(self, reads: Callable[[int], bool] = lambda step: True) -> Iterator[StepResult]:
        """Take the remaining steps, one per item; ``reads`` says of which to read the loss.

        Raises:
            TrainingDiverged: loss or gradient is not finite; the adapter was left as it was.
            OutOfGpuMemory: not even the smallest pass fits; the adapter was left as it was.
        """
        for step in range(self.counters.step + 1, self.schedule.total_steps + 1):
            yield self._take(step, reads(step))

    def refuse_divergence(self) -> None:
        """Wait for the last step, and see that no step so far was skipped as not finite.

        Raises:
            TrainingDiverged: one was; what is in memory is the adapter before it.
        """
        if self._broken.item():
            self._diverged(self.counters.step, math.nan, math.nan)

    def validation_loss(self, rows: Sequence[Row]) -> float:
        """Return the mean cross-entropy per supervised token over ``rows``, in nats."""
        total = self.passes.loss([Numbered(row, 0) for row in rows])
        return total / supervised_tokens(rows)

    def state_files(self) -> dict[str, bytes]:
        """Return the tensors of a checkpoint, by parameter name."""
        weights = {name: p.detach() for name, p in self._parameters.items()}
        moments = {
            f"{name}/{key}": value
            for name, p in self._parameters.items()
            for key, value in self._optimizer.state[p].items()
        }
        return {WEIGHTS: save(weights), MOMENTS: save(moments)}

    def restore(self, checkpoint: Path, counters: Counters) -> None:
        """Continue after the step of ``checkpoint``."""
        self.restore_weights(checkpoint)
        # To the CPU first: what is loaded straight to the GPU would be there twice.
        moments = load_file(checkpoint / MOMENTS)
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                for key, value in self._optimizer.state[parameter].items():
                    value.copy_(moments[f"{name}/{key}"])
        self.counters = counters

    def restore_weights(self, checkpoint: Path) -> None:
        """Take only the adapter from ``checkpoint``."""
        weights = load_file(checkpoint / WEIGHTS)
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(weights[name])

    def gradient(self, step: int, rows: Sequence[int]) -> float:
        """Leave the gradient of the mean loss over row numbers ``rows``; return the loss."""
        self._accumulate(step, rows)
        return self.passes.loss_sum.item()

    def _take(self, step: int, read: bool) -> StepResult:
        started = time.monotonic()
        numbers = self.schedule.rows_of(step)
        supervised = self._accumulate(step, numbers)
        rate = self.schedule.learning_rate(step)
        loss = grad_norm = None
        if supervised:  # the moments alone would move the weights
            norm = self._update(rate)
            if read:
                loss, grad_norm = self._read(step, norm)
        tokens = sum(len(self._rows[number].ids) for number in numbers)
        seconds = time.monotonic() - started
        before = self.counters
        self.counters = Counters(
            step,
            before.tokens + tokens,
            before.supervised_tokens + supervised,
            before.seconds + seconds,
            before.gpu_seconds + seconds * self._ranks.world_size,
        )
        epoch = self.schedule.epoch(step)
        stop = self.passes.asked_to_stop
        return StepResult(step, epoch, loss, grad_norm, rate, tokens, seconds, stop)

    def _accumulate(self, step: int, numbers: Sequence[int]) -> int:
        """Leave the gradient of the step; return how many tokens it learned from."""
        seed = self.spec.seed
        rows = [
            Numbered(self._rows[n], dropout_seed(seed, step, n))
            for n in numbers
            if self._rows[n].ids
        ]
        total = supervised_tokens([one.row for one in rows])
        # Also for a step without rows: the workers agree here on whether to stop.
        self.passes.accumulate(step, rows, total, asked_to_stop=self._asked_to_stop())
        return total

    def _update(self, rate: float) -> Tensor:
        """Move the adapter by the gradient that was left; return its norm before clipping."""
        norm = self.passes.clip(self.spec.max_grad_norm)
        finite = torch.isfinite(norm) & torch.isfinite(self.passes.loss_sum)
        self._broken = torch.maximum(self._broken, (~finite).float())
        # The fused optimizer reads this on the device and skips the update if it is 1.
        self._optimizer.found_inf = self._broken  # type: ignore[attr-defined]
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        return norm

    def _read(self, step: int, norm: Tensor) -> tuple[float, float]:
        """Wait for the step; return loss and gradient norm, which must be finite."""
        numbers = torch.stack([self.passes.loss_sum, norm, self._broken]).tolist()
        loss, grad_norm, broken = numbers
        if broken or not (math.isfinite(loss) and math.isfinite(grad_norm)):
            self._diverged(step, loss, grad_norm)
        self._losses.append(loss)
        return loss, grad_norm

    def _diverged(self, step: int, loss: float, grad_norm: float) -> NoReturn:
        raise TrainingDiverged(
            f"Training diverged at or before step {step}: loss {loss}, gradient norm "
            f"{grad_norm}. Lower learning_rate, or look for broken rows.",
            step=step,
            last_losses=list(self._losses),
        )

    def _make_moments(self) -> None:
        """Let the optimizer have its memory now, so that only passes can run out of it."""
        for parameter in self._parameters.values():
            self._optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }


def supervised_tokens(rows: Sequence[Row]) -> int:
    """Return how many tokens of ``rows`` carry loss; nothing predicts a row's first token."""
    return sum(sum(row.supervised[1:]) for row in rows)
