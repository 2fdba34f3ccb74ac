"""A request gets one answer, which never changes; nobody answering is an answer too."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from slm_core.errors import RecordNotFound, StoreError
from slm_core.records import (
    Approval,
    ApprovalState,
    PlannedMove,
    RiskTier,
    Stage,
    TrafficLimits,
)
from slm_core.store import Store

ASKED_AT = datetime(2026, 3, 14, 3, 0, tzinfo=UTC)
IN_TIME = ASKED_AT + timedelta(days=6)
TOO_LATE = ASKED_AT + timedelta(days=7)


def make_request(number: int = 1, **changes: Any) -> Approval:
    values: dict[str, Any] = {
        "id": f"approval-{number}",
        "run_id": f"run-{number}",
        "adapter_id": "adapter-1",
        "decision_id": "decision-1",
        "moves": (
            PlannedMove(
                agent_name="desk",
                track="toolcall",
                from_stage=Stage.CANDIDATE,
                version=1,
                to_stage=Stage.SHADOW,
                live_adapter_id=None,
                risk=RiskTier.HIGH,
            ),
        ),
        "share": 0.1,
        "limits": TrafficLimits(),
        "expires_at": TOO_LATE,
        "created_at": ASKED_AT,
    }
    return Approval(**(values | changes))


def answer(store: Store, state: ApprovalState = ApprovalState.APPROVED, **changes: Any) -> Approval:
    values: dict[str, Any] = {"who": "ann", "reason": "good", "now": IN_TIME}
    return store.approvals.decide("approval-1", state, **(values | changes))


def test_a_request_waits_until_it_is_answered(store: Store) -> None:
    assert store.approvals.of_run("run-1") is None
    asked = store.approvals.save(make_request())
    assert store.approvals.of_run("run-1") == asked
    assert store.approvals.waiting() == (asked,)
    decided = answer(store, share=0.3)
    assert (decided.state, decided.who, decided.reason, decided.decided_at, decided.share) == (
        ApprovalState.APPROVED,
        "ann",
        "good",
        IN_TIME,
        0.3,
    )
    assert store.approvals.get("approval-1") == decided
    assert store.approvals.waiting() == ()
    assert store.verify() == []


def test_an_answer_never_changes(store: Store) -> None:
    store.approvals.save(make_request())
    first = answer(store, ApprovalState.REJECTED)
    later = answer(store, ApprovalState.REJECTED, now=TOO_LATE)
    assert later == first, "the same answer again is no news"
    for other in ({"state": ApprovalState.APPROVED}, {"who": "bob"}, {"reason": "bad"}):
        with pytest.raises(StoreError, match="rejected by 'ann'"):
            answer(store, **({"state": ApprovalState.REJECTED} | other))
    assert store.approvals.get("approval-1") == first


def test_an_answer_that_comes_too_late_is_an_expiry(store: Store) -> None:
    store.approvals.save(make_request())
    decided = answer(store, now=TOO_LATE)
    assert (decided.state, decided.who) == (ApprovalState.EXPIRED, "timeout")


def test_a_request_that_was_never_made_cannot_be_answered(store: Store) -> None:
    with pytest.raises(RecordNotFound):
        answer(store)
