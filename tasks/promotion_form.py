"""The form in which a person answers a request for a promotion, and what was filled in."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from prefect.input import RunInput, keyset_from_paused_state, read_flow_run_input
from prefect.states import Suspended
from pydantic import Field

from slm_core.records import Approval, ApprovalState


class Choice(StrEnum):
    """What a person may answer."""

    APPROVE = "approve"
    REJECT = "reject"


class PromotionAnswer(RunInput):
    """The form that a waiting run shows."""

    decision: Choice = Field(description="Let the adapter take this step, or not.")
    approver: str = Field(min_length=1, description="Your name, for the record.")
    reason: str = Field(min_length=1, description="Why, for the record.")
    canary_share: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="For a canary: its part of the conversations. Empty takes the planned one.",
    )


class Verdict(NamedTuple):
    """An answer as it is stored."""

    state: ApprovalState
    who: str
    reason: str
    share: float | None
    answered_at: datetime


def form_key(attempt: int) -> str:
    """Return the key under which the server keeps what is filled in for an attempt of a run.

    A run that is resumed begins anew as the same attempt; one that is retried, as the next.
    """
    return f"approval-{attempt}"


def read_answer(run_id: str, attempts: int) -> PromotionAnswer | None:
    """Return what a person answered to one of a run's ``attempts``, if anything."""
    for attempt in range(1, attempts + 1):
        form_of_then = Suspended(timeout_seconds=1, pause_key=form_key(attempt))
        key = keyset_from_paused_state(form_of_then)["response"]
        # Not by PromotionAnswer.load, which takes an answer that is not there for an empty one.
        said = read_flow_run_input(key, flow_run_id=UUID(run_id))
        if said is not None:
            return PromotionAnswer.model_validate(said)
    return None


def verdict(answer: PromotionAnswer, approval: Approval) -> Verdict:
    """Return an answer to ``approval`` as it is stored; it came in time.

    The server takes no answer once the time is up. Only who reads it may come later.
    """
    approved = answer.decision == Choice.APPROVE
    return Verdict(
        ApprovalState.APPROVED if approved else ApprovalState.REJECTED,
        answer.approver,
        answer.reason,
        answer.canary_share,
        min(datetime.now(UTC), approval.expires_at - timedelta(seconds=1)),
    )
