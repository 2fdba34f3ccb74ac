"""Which rows a step reads, and at which learning rate: pure functions of seed and step.

Nothing here has a state, so a resumed run needs only its step number to go on exactly.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import math
import random
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from slm_core.training.packing import steps_by_tokens
from slm_core.training.spec import TrainingSpec

T = TypeVar("T")


class Position(NamedTuple):
    """Where in the data a run stands."""

    epoch: int
    """Epochs that are finished."""
    rows: int
    """Rows of the present epoch that were read."""


class Schedule:
    """The course of a run over rows of the given lengths, before any plan cut them."""

    def __init__(
        self, lengths: Sequence[int], spec: TrainingSpec, rows_per_step: int | None = None
    ) -> None:
        self._spec = spec
        size = rows_per_step or spec.micro_batch * spec.accumulation
        self._steps: list[list[int]] = []
        self._ends: list[int] = []
        for epoch in range(spec.epochs):
            order = _order(len(lengths), spec.seed, epoch)
            if spec.batching == "tokens":
                self._steps += steps_by_tokens(
                    order, lengths, spec.pass_tokens, max(1, size // spec.micro_batch)
                )
            else:
                self._steps += chunks(order, size)
            self._ends.append(len(self._steps))

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return len(self._steps)

    def rows_of(self, step: int) -> list[int]:
        """Return the row numbers that step ``step`` (from 1) reads."""
        return self._steps[step - 1]

    def epoch(self, step: int) -> float:
        """Return how many epochs are done after ``step``, in fractions."""
        done = bisect.bisect_left(self._ends, step)
        begin = self._ends[done - 1] if done else 0
        return done + (step - begin) / (self._ends[done] - begin)

    def ends_epoch(self, step: int) -> bool:
        """Return whether every row has been read once more after ``step``."""
        return step in self._ends

    def position(self, step: int) -> Position:
        """Return where in the data a run stands after ``step``."""
        done = bisect.bisect_right(self._ends, step)
        begin = self._ends[done - 1] if done else 0
        return Position(done, sum(map(len, self._steps[begin:step])))

    def step_at(self, position: Position) -> int:
        """Return the last step that reads nothing beyond ``position``.

        With steps of another size than before, up to one step's rows are read twice.
        """
        begin = self._ends[position.epoch - 1] if position.epoch else 0
        if position.epoch >= len(self._ends):
            return self.total_steps
        read = itertools.accumulate(map(len, self._steps[begin : self._ends[position.epoch]]))
        return begin + sum(1 for rows in read if rows <= position.rows)

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of step ``step`` (from 1).

        It rises linearly to the peak over the warm-up, then falls to zero just after the
        last step, so that no step is wasted at rate zero.
        """
        peak, total = self._spec.learning_rate, self.total_steps
        warmup = math.ceil(self._spec.warmup_ratio * total)
        if step <= warmup:
            return peak * step / warmup
        if self._spec.schedule == "constant":
            return peak
        done = (step - warmup - 1) / (total - warmup)
        if self._spec.schedule == "cosine":
            return peak * 0.5 * (1 + math.cos(math.pi * done))
        return peak * (1 - done)


def _order(rows: int, seed: int, epoch: int) -> list[int]:
    order = list(range(rows))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order


def dropout_seed(seed: int, step: int, row: int) -> int:
    """Return the 32-bit random seed of dropout for row number ``row`` in step ``step``."""
    digest = hashlib.sha256(f"{seed}/{step}/{row}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def chunks(items: Sequence[T], size: int) -> list[list[T]]:
    """Return ``items`` in order, in pieces of ``size``; the last may be shorter."""
    return [list(items[start : start + size]) for start in range(0, len(items), size)]
