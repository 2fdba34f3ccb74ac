"""A retraining that succeeds asks for its promotion, and no death of it loses that."""

from __future__ import annotations

from typing import Any

import pytest
from prefect import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId

from flows.promote_adapter import promote_adapter
from flows.retrain_student import retrain_student
from slm_core.decision import DecisionSpec
from slm_core.records import ClaimState

pytestmark = pytest.mark.integration


def test_a_run_killed_before_it_closes_its_claim_has_asked_for_the_promotion(
    service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And asks once, however often it begins again."""
    deployment = promote_adapter.to_deployment(name="adapter").apply()
    anything = DecisionSpec(
        min_rows=1,
        max_deficit=1,
        max_errors=1,
        domain_floor=0,
        domain_spread=1,
        **dict.fromkeys(("exact", "f1", "valid", "precision", "recall", "name_match")),
    )
    plan = service.plan()
    plan = plan.model_copy(update={"eval": service.eval_plan(decision=anything)})
    claim_id = service.claimed()

    def asked() -> int:
        with get_client(sync_client=True) as client:
            wanted = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
            return len(client.read_flow_runs(deployment_filter=wanted))

    before = asked()
    with monkeypatch.context() as patch:

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("slm_core.store.claims.Claims.done", killed)
        with pytest.raises(KeyboardInterrupt):
            retrain_student(claim_id, run_id="run-1", overrides=plan)
    assert asked() == before + 1
    assert retrain_student(
        claim_id, run_id="run-1", overrides=plan, return_state=True
    ).is_completed()
    assert asked() == before + 1
    with service.store() as store:
        assert store.claims.get(claim_id).state is ClaimState.DONE
