"""How one attempt carries a spec out on this machine.

The spec fixes what is learned: rows per optimizer step, their order, the schedule. The
plan fixes only how a step is split, so another plan gives the same gradient.
"""

from __future__ import annotations

from pydantic import Field

from slm_core.records import Record
from slm_core.training.spec import TrainingSpec


class Plan(Record):
    """One way to carry out the steps of a spec."""

    micro_batch: int = Field(ge=1)
    """Rows in one forward pass; the step's rows are cut into as many passes as it takes."""


def first_plan(spec: TrainingSpec) -> Plan:
    """Return the plan that a run begins with: the spec as written."""
    return Plan(micro_batch=spec.micro_batch)
