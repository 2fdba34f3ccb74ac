"""How one attempt carries a spec out on this machine.

The spec fixes what is learned: rows per optimizer step, their order, the schedule. A plan
fixes how a step is split, stored and spread, so most plans give the same gradient. Those
that do not (another base precision, shorter rows, smaller steps) are later rungs of the
ladder, and say so in ``changes``.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from slm_core.records import Record
from slm_core.training.spec import TrainingSpec


class Plan(Record):
    """One way to carry out the steps of a spec."""

    pass_rows: int = Field(ge=1)
    """Rows in one forward pass when rows are padded; a step is cut into as many as it takes."""
    pass_tokens: int = Field(ge=1)
    """Tokens in one forward pass when rows are packed; no less than the longest row."""
    rows_per_step: int = Field(ge=1)
    """Rows that one optimizer step reads; the spec's, except under the policy ``recipe``."""
    max_length: int = Field(ge=2)
    """Longest row in tokens; the spec's, unless the ladder had to shorten rows."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of keeping them."""
    expandable_segments: bool = False
    """Let the CUDA allocator grow its blocks: against fragmentation."""
    quantization: Literal["none", "nf4"] = "none"
    """How the frozen base model is kept in memory."""
    gpus: tuple[str, ...] = ()
    """CUDA device names, UUIDs or indexes; empty takes what the worker sees."""
    world_size: int = Field(default=1, ge=1)
    """Worker processes that share each step."""
    changes: tuple[str, ...] = ()
    """Rungs taken so far, in order; see ``recovery.py``."""


def first_plan(spec: TrainingSpec, gpus: tuple[str, ...] = ()) -> Plan:
    """Return the plan that a run begins with: the spec as written, on ``gpus``."""
    return Plan(
        pass_rows=spec.micro_batch,
        pass_tokens=spec.pass_tokens,
        rows_per_step=spec.micro_batch * spec.accumulation,
        max_length=spec.max_length,
        gradient_checkpointing=spec.gradient_checkpointing == "on",
        quantization=spec.quantization,
        gpus=gpus,
        world_size=spec.world_size,
    )
