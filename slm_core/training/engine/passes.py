"""The passes of a step, each all or nothing. Imports torch.

A pass either adds its whole gradient to the sum or nothing at all. When memory runs out, in
the forward or the backward direction, the same rows are read again in two halves, and when a
pass is a single row, with checkpointing on. No step is lost, and the gradient is the same.
What had to be changed stays so for the rest of the attempt, and is written down.
"""

from __future__ import annotations

import gc
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from slm_core.errors import OutOfGpuMemory
from slm_core.training.engine.batches import Numbered, Pass, packed, padded
from slm_core.training.engine.memory import is_out_of_memory, memory_facts, try_pass
from slm_core.training.engine.ranks import Ranks
from slm_core.training.engine.student import Student
from slm_core.training.packing import best_fit, share
from slm_core.training.plan import Plan
from slm_core.training.schedule import chunks
from slm_core.training.spec import TrainingSpec

log = logging.getLogger(__name__)

# Products over a multiple of this many tokens use whole tiles of the matrix units.
_GPU_MULTIPLE = 128
_FLAGS = 3

OnRecovery = Callable[[int, str, str, dict[str, Any]], None]
"""Called with step, rung, message and numbers."""


class Passes:
    """Computes gradients of steps over the adapter of ``student``."""

    def __init__(
        self, student: Student, spec: TrainingSpec, plan: Plan, ranks: Ranks, *, longest: int
    ) -> None:
        self.plan = plan
        self.on_recovery: OnRecovery | None = None
        self.on_pass: Callable[[], None] = lambda: None
        self.asked_to_stop = False
        self.one_length = False
        """Fill every pass up to what the plan allows, for layers compiled for one length."""
        self._student = student
        self._spec = spec
        self._ranks = ranks
        self._longest = longest
        self._parameters = list(student.trainable.values())
        # Gradients of all parameters, then the loss and two flags, in one piece of memory:
        # summed over the workers at once, and there from the beginning.
        sizes = [p.numel() for p in self._parameters]
        self._sums = torch.zeros(sum(sizes) + _FLAGS, device=student.device)
        self._gradients = self._sums[: sum(sizes)]
        self._loss, self._stop, self._give_up = self._sums[sum(sizes) :]
        flat = self._gradients.split(sizes)
        self._views = [v.view_as(p) for v, p in zip(flat, self._parameters, strict=True)]
        for parameter, view in zip(self._parameters, self._views, strict=True):
            parameter.grad = view
        if plan.gradient_checkpointing:
            student.use_checkpointing()

    def compile(self) -> None:
        """Compile the student's layers: for one length where the rows of a step fill it."""
        self.one_length = self._spec.packing and self._spec.batching == "tokens"
        self._student.compile(one_length=self.one_length)

    @property
    def loss_sum(self) -> Tensor:
        """Mean loss of the last step, on the device."""
        return self._loss

    def accumulate(
        self, step: int, rows: Sequence[Numbered], supervised: int, *, asked_to_stop: bool
    ) -> None:
        """Leave the gradient of the summed loss of ``rows`` over ``supervised`` tokens.

        Raises:
            OutOfGpuMemory: here or on another worker not even the smallest pass fits.
        """
        self._student.model.train()
        self._sums.zero_()
        failure: OutOfGpuMemory | None = None
        waiting = deque(self._cut(self._mine(rows)))
        idle = self._idle_passes(rows, len(waiting))
        while waiting:
            some = waiting.popleft()
            if self._add(some, supervised):
                self.on_pass()
                continue
            smaller = self._make_room(step, some, "Memory ran out")
            if smaller is None:
                failure = self._exhausted(step, some)
                if self._spec.shard:
                    # The other workers wait for this one in the middle of a layer.
                    raise failure
                self._give_up.fill_(1)
                break
            waiting = deque(smaller + [part for one in waiting for part in self._cut(one)])
        for _ in range(idle):
            torch.autograd.grad(self._student.loss_sum(self._laid(rows[:1])), self._parameters)
        self._agree(step, failure, asked_to_stop)

    def clip(self, largest: float) -> Tensor:
        """Scale the gradient down to norm ``largest``; return its norm before, on the device."""
        norm = self._gradients.norm()
        self._gradients.mul_((largest / (norm + 1e-6)).clamp(max=1.0))
        return norm

    @torch.no_grad()
    def loss(self, rows: Sequence[Numbered]) -> float:
        """Return the summed cross-entropy over ``rows``, without dropout, in nats."""
        self._student.model.eval()
        total = torch.zeros((), device=self._student.device)
        cuts = self._cut(self._mine(rows))
        for some in cuts:
            total += self._student.loss_sum(self._laid(some))
            self.on_pass()
        for _ in range(self._idle_passes(rows, len(cuts))):
            self._student.loss_sum(self._laid(rows[:1]))
        self._ranks.sum(total)
        return total.item()

    def try_longest(self, rows: Sequence[Numbered], fraction: float | None = None) -> None:
        """Choose the size of a pass, and whether to checkpoint, by trial before step 1.

        Args:
            rows: the longest rows of the run, as many as fill a pass.
            fraction: share of the card that this process may use.

        Raises:
            OutOfGpuMemory: it ran out in the middle of a layer for which other workers wait.
        """
        self._student.model.train()
        device = self._student.device
        while (found := try_pass(device, lambda: self._try(rows), fraction)) != "fits":
            why = "A trial pass left too little memory free"
            if self._make_room(0, self._filled(rows), why) is None:
                if found == "ran_out" and self._spec.shard:
                    raise self._exhausted(0, self._filled(rows))
                log.warning("even the smallest trial pass leaves too little memory free")
                return

    def _try(self, rows: Sequence[Numbered]) -> None:
        loss = self._student.loss_sum(self._laid(self._filled(rows)))
        torch.autograd.grad(loss, self._parameters)
        self.on_pass()

    def _filled(self, rows: Sequence[Numbered]) -> list[Numbered]:
        """Return the most of ``rows`` that one pass takes."""
        return self._cut(rows)[0]

    def _idle_passes(self, rows: Sequence[Numbered], own: int) -> int:
        """Return how many passes to run for nothing beside ``own`` real ones.

        Workers that share a model fetch its layers from each other in every pass, so all of
        them must run equally many.
        """
        if not self._spec.shard:
            return 0
        every = range(self._ranks.world_size)
        return max(len(self._cut(self._share_of(rank, rows))) for rank in every) - own

    def _mine(self, rows: Sequence[Numbered]) -> list[Numbered]:
        """Return this worker's share of a step's rows."""
        return self._share_of(self._ranks.rank, rows)

    def _share_of(self, rank: int, rows: Sequence[Numbered]) -> list[Numbered]:
        parts = self._ranks.world_size
        if parts == 1:
            return list(rows)
        if self._spec.batching == "tokens":
            # Whole bins, so that every worker's passes stay full.
            bins = best_fit([row.tokens for row in rows], self._spec.pass_tokens)
            weights = [sum(rows[n].tokens for n in one) for one in bins]
            dealt = share(weights, parts)[rank]
            return [rows[n] for number in dealt for n in bins[number]]
        dealt = share([row.tokens for row in rows], parts)[rank]
        return [rows[n] for n in dealt]

    def _cut(self, rows: Sequence[Numbered]) -> list[list[Numbered]]:
        """Return ``rows`` in passes that the plan allows."""
        if self._spec.packing:
            bins = best_fit([row.tokens for row in rows], self.plan.pass_tokens)
            return [[rows[n] for n in one] for one in bins]
        # Longest first: rows of like length share a pass, and the largest pass comes first.
        ordered = sorted(rows, key=lambda row: row.tokens, reverse=True)
        return chunks(ordered, self.plan.pass_rows)

    def _laid(self, rows: Sequence[Numbered]) -> Pass:
        device = self._student.device
        if not self._spec.packing:
            return padded(rows, device)
        multiple = _GPU_MULTIPLE if device.type == "cuda" else 1
        if self.one_length:
            multiple = self.plan.pass_tokens
        # Rows for validation may be longer than any that is trained on.
        longest = max(self._longest, max(row.tokens for row in rows))
        return packed(rows, device, longest=longest, multiple=multiple)

    def _add(self, rows: Sequence[Numbered], supervised: int) -> bool:
        """Add the gradient of one pass; False, and nothing added, when memory ran out."""
        try:
            # The sum itself: a factor would go backwards through bf16, rounded to 3 digits.
            loss = self._student.loss_sum(self._laid(rows))
            gradients = torch.autograd.grad(loss, self._parameters)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            # The traceback keeps every tensor of the pass alive until this function returns.
            return False
        torch._foreach_add_(  # pyright: ignore[reportPrivateImportUsage]
            self._views, gradients, alpha=1 / supervised
        )
        self._loss += loss.detach() / supervised
        return True

    def _make_room(
        self, step: int, rows: Sequence[Numbered], why: str
    ) -> list[list[Numbered]] | None:
        """Change the plan so that passes need less; return ``rows`` cut anew, None if all is
        used up."""
        self._student.forget_pass()
        gc.collect()
        facts = memory_facts(self._student.device)
        if self._student.device.type == "cuda":
            torch.cuda.empty_cache()
        tokens = sum(row.tokens for row in rows)
        facts |= {"pass_rows": len(rows), "pass_tokens": tokens}
        if self._ranks.world_size > 1 and self._spec.shard:
            return None  # The other workers are in the middle of the same layer.
        if self.one_length and self.plan.pass_tokens > max(self._longest, tokens):
            # The pass was filled up: it is smaller without a row less in it.
            half = -(-self.plan.pass_tokens // 2 // _GPU_MULTIPLE) * _GPU_MULTIPLE
            limit = max(half, self._longest)
            self.plan = self.plan.model_copy(update={"pass_tokens": limit})
            said = f"passes of {limit} tokens"
            self._tell(step, "split", f"{why} with {tokens} tokens: {said}.", facts)
            return self._cut(rows)
        if len(rows) > 1:
            limit = max(-(-tokens // 2), max(row.tokens for row in rows))
            half = max(1, len(rows) // 2)
            self.plan = self.plan.model_copy(update={"pass_tokens": limit, "pass_rows": half})
            said = f"passes of at most {limit} tokens"
            self._tell(step, "split", f"{why} with {tokens} tokens: {said}.", facts)
            return self._cut(rows)
        if not self._student.checkpointing and self._spec.gradient_checkpointing != "off":
            self.plan = self.plan.model_copy(update={"gradient_checkpointing": True})
            self._student.use_checkpointing()
            message = f"{why} in a pass of one row: gradient checkpointing on."
            self._tell(step, "gradient_checkpointing", message, facts)
            return self._cut(rows)
        return None

    def _tell(self, step: int, rung: str, message: str, facts: dict[str, Any]) -> None:
        log.warning("%s step=%d rank=%d", message, step, self._ranks.rank)
        if self.on_recovery:
            self.on_recovery(step, rung, message, facts)

    def _exhausted(self, step: int, rows: Sequence[Numbered]) -> OutOfGpuMemory:
        return OutOfGpuMemory(
            f"A single row of {rows[0].tokens} tokens does not fit into GPU memory at step {step}, "
            "with what the plan allows. Use a larger GPU, 4-bit weights or shorter rows.",
            step=step,
            tokens=rows[0].tokens,
            **memory_facts(self._student.device),
        )

    def _agree(self, step: int, failure: OutOfGpuMemory | None, asked_to_stop: bool) -> None:
        """Sum over the workers; all of them stop, or fail, at the same step."""
        self.asked_to_stop = asked_to_stop
        if self._ranks.world_size > 1:
            if asked_to_stop:
                self._stop.fill_(1)
            self._ranks.sum(self._sums)
            stop, give_up = (flag > 0 for flag in self._sums[-2:].tolist())
            self.asked_to_stop = stop
            if give_up and failure is None:
                failure = OutOfGpuMemory(
                    f"Another worker ran out of GPU memory for good at step {step}.", step=step
                )
        if failure is not None:
            raise failure
