"""The sixth noun: which model answers, how it came to, and who let it."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import ConfigDict, Field

from slm_core.records.base import Record, Track, utc_now
from slm_core.records.decision import GateResult


class Stage(StrEnum):
    """Life of an adapter on a route."""

    CANDIDATE = "candidate"
    SHADOW = "shadow"
    CANARY = "canary"
    LIVE = "live"
    RETIRED = "retired"


class RiskTier(StrEnum):
    """What a wrong answer may cost; only ``low`` needs no person."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class TrafficLimits(Record):
    """How real traffic may turn out before a route goes on, or steps back."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    min_answers: int = Field(default=100, ge=1)
    """Answers asked of the adapter, and as many compared ones, that a next step takes."""
    max_fall_back: float = Field(default=0.05, ge=0, le=1)
    """Share of answers asked of the adapter that the teacher had to give instead."""
    max_disagreement: float = Field(default=0.30, ge=0, le=1)
    """Share of compared answers that call something else than the answer that was given. Not
    all of these are wrong: where the teacher is right in 80 % of cases, a perfect adapter
    disagrees in 20 %."""
    guard_answers: int = Field(default=30, ge=1)
    """From so many within the window a canary may be taken back."""
    guard_minutes: int = Field(default=60, ge=1)
    """Window that a canary is judged by."""


class Route(Record):
    """Who answers for one agent and track."""

    agent_name: str
    track: Track
    adapter_id: str
    stage: Stage
    version: int
    """Grows by one with each change; compare-and-set."""
    share: float | None = None
    """Part of the conversations that a canary answers, 0 to 1; None at other stages."""
    updated_at: datetime = Field(default_factory=utc_now)


class Promotion(Record):
    """One move of a route; append-only."""

    id: str
    agent_name: str
    track: Track
    adapter_id: str
    from_stage: Stage | None
    to_stage: Stage
    previous_adapter_id: str | None
    decision_id: str | None
    who: str
    reason: str
    share: float | None = None
    limits: TrafficLimits | None = None
    """By what the traffic is judged from now on."""
    run_id: str | None = None
    """Flow run that made the move; None when no flow did."""
    created_at: datetime = Field(default_factory=utc_now)


class ApprovalState(StrEnum):
    """Life of a request: it waits for a person, who answers once, or for too long."""

    WAITING = "waiting"
    APPROVED = "approved"
    REJECTED = "rejected"
    EXPIRED = "expired"


class PlannedMove(Record):
    """One move that is asked for, with the route as it was then."""

    agent_name: str
    track: Track
    from_stage: Stage | None
    version: int | None
    """Of the route; the move is carried out only if it is still this one."""
    to_stage: Stage
    live_adapter_id: str | None
    """Who is live now, and would be brought back by a roll back; None is the teacher."""
    risk: RiskTier
    evidence: tuple[GateResult, ...] = ()
    """What the route's own traffic says."""


class Approval(Record):
    """One question to a person, and the answer: who, when and why."""

    id: str
    run_id: str
    """Flow run that asks; it asks once."""
    adapter_id: str
    decision_id: str
    moves: tuple[PlannedMove, ...]
    share: float
    """Part of the conversations for a canary."""
    limits: TrafficLimits
    state: ApprovalState = ApprovalState.WAITING
    who: str | None = None
    reason: str | None = None
    expires_at: datetime
    decided_at: datetime | None = None
    refused: str | None = None
    """What the traffic said against moves that were to be made, and have not been since."""
    created_at: datetime = Field(default_factory=utc_now)


TrafficRole = Literal["answer", "shadow"]
"""``answer``: asked to answer the caller. ``shadow``: asked too, to be compared."""


class TrafficOutcome(StrEnum):
    """What became of one question to an adapter."""

    ANSWERED = "answered"
    AGREED = "agreed"
    """In the shadow: it makes the same calls as the answer that was given."""
    DISAGREED = "disagreed"
    FORMAT = "format"
    """Its answer was not in the track's exact format."""
    ERROR = "error"
    TIMEOUT = "timeout"
    BUSY = "busy"
    UNSUPPORTED = "unsupported"
    """The request asks for what a greedy local model cannot honour."""
    INCOMPARABLE = "incomparable"
    """In the shadow: neither answer is in the format, or none was given."""
    SKIPPED = "skipped"
    """In the shadow: not asked, because too many wait or a caller needs the model."""


class TrafficKey(Record):
    """What is counted together."""

    agent_name: str
    track: Track
    adapter_id: str
    version: int
    """Of the route: a count belongs to one stage of one route."""
    role: TrafficRole
    outcome: TrafficOutcome
