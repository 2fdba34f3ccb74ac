"""The training loop: one optimizer step at a time, and its whole state. Imports torch.

The loss of a step is the sum over its supervised tokens divided by their number, counted
over the whole step, so that it does not matter how the step's rows are split into passes.
Row order, learning rate and dropout are functions of (seed, step): the step number, the
adapter and the optimizer's moments are all that a checkpoint needs.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from slm_core.errors import TrainingDiverged
from slm_core.training.lora import Student
from slm_core.training.plan import Plan
from slm_core.training.rows import Row
from slm_core.training.schedule import Schedule, chunks, dropout_seed
from slm_core.training.spec import TrainingSpec

WEIGHTS, MOMENTS = "adapter.safetensors", "optimizer.safetensors"
_REMEMBERED_LOSSES = 5


class Batch(NamedTuple):
    """Rows padded on the right to the longest."""

    ids: Tensor
    """(rows, length)."""
    predicting: tuple[Tensor, Tensor]
    """Row and column of the positions whose next token is supervised."""
    targets: Tensor
    """Those next tokens."""


class StepResult(NamedTuple):
    """What one optimizer step did."""

    step: int
    epoch: float
    loss: float
    grad_norm: float
    """Before clipping."""
    learning_rate: float
    tokens: int
    """Read in this step, prompt and answer, without padding."""
    seconds: float


class Counters(NamedTuple):
    """Totals over all attempts of a run."""

    step: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    seconds: float = 0.0


class Loop:
    """One run over its rows."""

    def __init__(
        self, student: Student, rows: Sequence[Row], spec: TrainingSpec, plan: Plan
    ) -> None:
        self.schedule = Schedule(len(rows), spec)
        self.counters = Counters()
        self._student = student
        self._rows = rows
        self._spec = spec
        self._plan = plan
        self._parameters = student.trainable
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(),
            lr=spec.learning_rate,
            weight_decay=spec.weight_decay,
            fused=True,
        )
        self._losses: deque[float] = deque(maxlen=_REMEMBERED_LOSSES)

    def steps(self) -> Iterator[StepResult]:
        """Take the remaining steps, one per item.

        Raises:
            TrainingDiverged: loss or gradient is not finite; the adapter was left as it was.
        """
        for step in range(self.counters.step + 1, self.schedule.total_steps + 1):
            yield self._take(step)

    def validation_loss(self, rows: Sequence[Row]) -> float:
        """Return the mean cross-entropy per supervised token over ``rows``, in nats."""
        self._student.model.eval()
        total = 0.0
        with torch.no_grad():
            for some in chunks(_by_length(rows), self._plan.micro_batch):
                total += self._loss_sum(collate(some, self._student.device)).item()
        return total / _supervised(rows)

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
        weights = load_file(checkpoint / WEIGHTS)
        moments = load_file(checkpoint / MOMENTS)
        states: dict[int, dict[str, Tensor]] = {}
        with torch.no_grad():
            for number, (name, parameter) in enumerate(self._parameters.items()):
                parameter.copy_(weights[name])
                prefix = f"{name}/"
                states[number] = {
                    key.removeprefix(prefix): value
                    for key, value in moments.items()
                    if key.startswith(prefix)
                }
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": states, "param_groups": groups})
        self.counters = counters

    def gradient(self, step: int, rows: Sequence[Row]) -> float:
        """Leave the gradient of the mean loss over ``rows`` on the adapter; return the loss.

        The plan decides into how many passes the rows are split; the result is the same.
        """
        self._student.model.train()
        supervised = _supervised(rows)
        loss = 0.0
        for part, some in enumerate(chunks(_by_length(rows), self._plan.micro_batch)):
            torch.manual_seed(dropout_seed(self._spec.seed, step, part))
            share = self._loss_sum(collate(some, self._student.device)) / supervised
            share.backward()
            loss += share.item()
        return loss

    def _take(self, step: int) -> StepResult:
        started = time.monotonic()
        rows = [self._rows[index] for index in self.schedule.rows_of(step)]
        self._optimizer.zero_grad()
        loss = self.gradient(step, rows)
        norm = nn.utils.clip_grad_norm_(self._parameters.values(), self._spec.max_grad_norm).item()
        self._refuse_divergence(step, loss, norm)
        rate = self.schedule.learning_rate(step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()

        tokens, seconds = sum(len(row.ids) for row in rows), time.monotonic() - started
        before = self.counters
        self.counters = Counters(
            step,
            before.tokens + tokens,
            before.supervised_tokens + _supervised(rows),
            before.seconds + seconds,
        )
        epoch = step / self.schedule.steps_per_epoch
        return StepResult(step, epoch, loss, norm, rate, tokens, seconds)

    def _loss_sum(self, batch: Batch) -> Tensor:
        with self._student.autocast():
            hidden = self._student.hidden(batch.ids)
            # Only positions that are scored meet the output layer, the widest one.
            logits = self._student.logits(hidden[batch.predicting])
        return cross_entropy(logits.float(), batch.targets, reduction="sum")

    def _refuse_divergence(self, step: int, loss: float, norm: float) -> None:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingDiverged(
                f"Training diverged at step {step}: loss {loss}, gradient norm {norm}. Lower "
                "learning_rate, or look for broken rows.",
                step=step,
                last_losses=list(self._losses),
            )
        self._losses.append(loss)


def collate(rows: Sequence[Row], device: torch.device) -> Batch:
    """Return ``rows`` as one batch on ``device``."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    learned = torch.zeros(len(rows), longest, dtype=torch.bool)
    for number, row in enumerate(rows):
        length = len(row.ids)
        ids[number, :length] = torch.tensor(row.ids)
        learned[number, :length] = torch.tensor(row.supervised)
    # A position predicts the token after it.
    row_numbers, columns = learned[:, 1:].nonzero(as_tuple=True)
    targets = ids[row_numbers, columns + 1]
    predicting = (row_numbers.to(device), columns.to(device))
    return Batch(ids.to(device), predicting, targets.to(device))


def _supervised(rows: Sequence[Row]) -> int:
    """Return how many tokens of ``rows`` carry loss; nothing predicts a row's first token."""
    return sum(sum(row.supervised[1:]) for row in rows)


def _by_length(rows: Sequence[Row]) -> list[Row]:
    """Return ``rows`` longest first, so that rows of like length share a pass."""
    return sorted(rows, key=lambda row: len(row.ids), reverse=True)
