"""The sixth noun: which model answers, and how it came to."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from slm_core.records.base import Record, Track, utc_now


class Stage(StrEnum):
    """Life of an adapter on a route."""

    CANDIDATE = "candidate"
    SHADOW = "shadow"
    CANARY = "canary"
    LIVE = "live"
    RETIRED = "retired"


class Route(Record):
    """Who answers for one agent and track."""

    agent_name: str
    track: Track
    adapter_id: str
    stage: Stage
    version: int
    """Grows by one with each change; compare-and-set."""
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
    created_at: datetime = Field(default_factory=utc_now)
