"""What no run looks after any more is brought to its end, and only that."""

from __future__ import annotations

import time
from typing import Any

import pytest
from prefect import flow, get_client
from prefect.states import Cancelled, Crashed, Scheduled, State

from flows.promote_adapter import promote_adapter
from flows.settle_routes import settle_routes
from slm_core.presets import NANO
from slm_core.records import (
    Approval,
    ApprovalState,
    RiskTier,
    Stage,
    TrafficKey,
    TrafficOutcome,
    TrafficRole,
)
from slm_core.serving import PromotionSpec, carry_out, request_approval
from slm_core.store import Store
from slm_core.testing.records import make_adapter
from slm_core.testing.routes import move
from slm_core.training.orders import Order
from tasks import _wiring, settling
from tasks._wiring import order_book

pytestmark = pytest.mark.integration

ADAPTER = make_adapter()
ANN = {"who": "ann", "reason": "the gates passed"}


@flow(name="promote")
def promote_flow() -> None: ...


def asked(store: Store, agent: str, state: State[Any] | None = None) -> Approval:
    """Return what a run asks that is now in ``state``."""
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(promote_flow, state=state)
    return request_approval(store, PromotionSpec(), run_id=str(run.id), agent_name=agent)


def ordered(run_id: str, risk: RiskTier = RiskTier.HIGH) -> None:
    plan = NANO.model_copy(update={"promotion": PromotionSpec(risk=risk)})
    order_book().write(Order(run_id=run_id, flow="retrain", spec=plan.model_dump(mode="json")))


def see(store: Store, role: TrafficRole, outcome: TrafficOutcome, count: int) -> None:
    """Let the agent ``desk`` have that traffic on the route as it stands now."""
    route = store.routes.find("desk", "toolcall", ADAPTER.id)
    assert route is not None
    key = TrafficKey(
        agent_name="desk",
        track="toolcall",
        adapter_id=ADAPTER.id,
        version=route.version,
        role=role,
        outcome=outcome,
    )
    store.traffic.add({key: count})


def test_a_weak_canary_is_taken_back_and_that_is_told(store: Store, told: list[Any]) -> None:
    move(store, Stage.SHADOW)
    move(store, Stage.CANARY, share=0.5)
    see(store, "answer", TrafficOutcome.TIMEOUT, 40)
    (moved,) = settling.guard_canaries.fn()
    assert (moved.adapter_id, moved.to_stage) == (ADAPTER.id, Stage.SHADOW)
    ((event, payload),) = told
    assert (event, payload["who"]) == ("slm.canary.stepped-back", "guard")
    assert "40 of 40" in payload["reason"]


def test_a_request_of_a_cancelled_run_waits_for_nobody(store: Store, told: list[Any]) -> None:
    cancelled = asked(store, "desk", Cancelled())
    crashed = asked(store, "intake", Crashed())  # it may be retried
    (closed,) = settling.close_requests.fn()
    assert (closed.id, closed.state) == (cancelled.id, ApprovalState.REJECTED)
    assert closed.reason == "run cancelled"
    assert store.approvals.waiting() == (crashed,)
    assert [event for event, _ in told] == ["slm.promotion.decided"]


def test_what_was_approved_moves_though_its_run_died(store: Store) -> None:
    done, died, overtaken = (asked(store, agent) for agent in ("desk", "intake", "intake"))
    approved = [
        store.approvals.decide(one.id, ApprovalState.APPROVED, **ANN)
        for one in (done, died, overtaken)
    ]
    carry_out(store, approved[0])

    (moved,) = settling.make_approved_moves.fn()

    assert (moved.agent_name, moved.stage, moved.version) == ("intake", Stage.SHADOW, 2)
    assert store.routes.history("intake", "toolcall")[-1].run_id == died.run_id
    assert settling.make_approved_moves.fn() == []
    assert len(store.routes.history("desk", "toolcall")) == 2


def test_a_promotion_that_the_traffic_refuses_keeps_no_other_back(store: Store) -> None:
    move(store, Stage.SHADOW)
    see(store, "shadow", TrafficOutcome.AGREED, 100)
    refused, good = (asked(store, agent) for agent in ("desk", "intake"))
    for one in (refused, good):
        store.approvals.decide(one.id, ApprovalState.APPROVED, **ANN)
    see(store, "shadow", TrafficOutcome.DISAGREED, 300)
    (moved,) = settling.make_approved_moves.fn()
    assert (moved.agent_name, moved.stage) == ("intake", Stage.SHADOW)
    assert "300 of 400" in (store.approvals.get(refused.id).refused or "")


def test_an_answer_that_is_on_its_way_is_not_taken_for_silence(store: Store) -> None:
    hasty = PromotionSpec(approval_days=0.1 / 86_400)
    with get_client(sync_client=True) as client:
        runs = [client.create_flow_run(promote_flow, state=one) for one in (Scheduled(), Crashed())]
    answered, silent = (
        request_approval(store, hasty, run_id=str(run.id), agent_name=agent)
        for run, agent in zip(runs, ("desk", "intake"), strict=True)
    )
    time.sleep(0.2)
    assert [one.id for one in settling.close_requests.fn()] == [silent.id]
    assert store.approvals.waiting() == (answered,)


def test_a_promotion_that_a_retraining_could_not_start_is_started_once(store: Store) -> None:
    deployment = promote_adapter.to_deployment(name="adapter").apply()
    late = make_adapter(id=f"adapter-late-{deployment}", run_id="late")
    move(store, Stage.CANDIDATE, "lobby", adapter=late)
    ordered("late", RiskTier.MEDIUM)
    # Another's order cannot be read here: it is asked about once it can.
    newer = make_adapter(id="adapter-a-newer-one", run_id="newer")
    move(store, Stage.CANDIDATE, "annex", adapter=newer)
    ordered("newer")
    file = _wiring.current_settings().home / "runs" / "newer" / "order.json"
    file.write_text(file.read_text().replace("{", '{"of_a_newer_version": 1,', 1))
    for _ in range(2):
        # The other one was trained by hand: nobody is asked about it.
        assert settling.ask_for_candidates.fn() == [late.id]
    with get_client(sync_client=True) as client:
        runs = [one for one in client.read_flow_runs() if one.deployment_id == deployment]
    (run,) = [one for one in runs if one.parameters.get("adapter_id") == late.id]
    assert run.parameters["overrides"]["risk"] == "medium"


def test_a_step_that_fails_turns_the_run_red_and_keeps_no_other_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    started: list[str] = []
    monkeypatch.setattr(settling, "guard_routes", broken)
    monkeypatch.setattr(settling, "start_promotion", lambda adapter, _: started.append(adapter))
    ordered(ADAPTER.run_id)
    assert settle_routes(return_state=True).is_failed()
    assert started == [ADAPTER.id]
