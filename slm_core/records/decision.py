"""The fifth noun: what the numbers allow."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from slm_core.records.base import Record, Track, utc_now

Verdict = Literal["pass", "fail", "inconclusive"]
Outcome = Literal["SUCCESS", "PARTIAL", "FAILURE"]


class GateResult(Record):
    """One question with its answer; missing evidence is never a pass."""

    gate: str
    track: Track | None = None
    verdict: Verdict
    value: float | None
    threshold: float | None
    n: int = 0
    required: bool = True
    """A required gate that does not pass keeps the outcome from being SUCCESS."""
    reason: str


class Decision(Record):
    """The verdict on one evaluation."""

    id: str
    evaluation_id: str
    adapter_id: str | None
    outcome: Outcome
    gates: tuple[GateResult, ...]
    next_actions: tuple[str, ...]
    created_at: datetime = Field(default_factory=utc_now)
