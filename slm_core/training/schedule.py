"""Which rows a step reads, and at which learning rate: pure functions of seed and step.

Nothing here has a state, so a resumed run needs only its step number to go on exactly.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar

from slm_core.training.spec import TrainingSpec

T = TypeVar("T")


class Schedule(NamedTuple):
    """The course of a run over ``rows`` rows."""

    rows: int
    spec: TrainingSpec

    @property
    def rows_per_step(self) -> int:
        """Rows of one optimizer step; the last step of an epoch may have fewer."""
        return self.spec.micro_batch * self.spec.accumulation

    @property
    def steps_per_epoch(self) -> int:
        """Steps that read every row once."""
        return math.ceil(self.rows / self.rows_per_step)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.steps_per_epoch * self.spec.epochs

    def rows_of(self, step: int) -> list[int]:
        """Return the row numbers that step ``step`` (from 1) reads."""
        epoch, position = divmod(step - 1, self.steps_per_epoch)
        start = position * self.rows_per_step
        return _order(self.rows, self.spec.seed, epoch)[start : start + self.rows_per_step]

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of step ``step`` (from 1).

        It rises linearly to the peak over the warm-up, then falls to zero just after the
        last step, so that no step is wasted at rate zero.
        """
        peak, total = self.spec.learning_rate, self.total_steps
        warmup = math.ceil(self.spec.warmup_ratio * total)
        if step <= warmup:
            return peak * step / warmup
        if self.spec.schedule == "constant":
            return peak
        done = (step - warmup - 1) / (total - warmup)
        if self.spec.schedule == "cosine":
            return peak * 0.5 * (1 + math.cos(math.pi * done))
        return peak * (1 - done)


@lru_cache(maxsize=1)
def _order(rows: int, seed: int, epoch: int) -> list[int]:
    order = list(range(rows))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order


def dropout_seed(seed: int, step: int, part: int) -> int:
    """Return the 63-bit random seed of forward pass ``part`` of step ``step``."""
    digest = hashlib.sha256(f"{seed}/{step}/{part}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def chunks(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Return ``items`` in order, in pieces of ``size``; the last may be shorter."""
    return [items[start : start + size] for start in range(0, len(items), size)]
