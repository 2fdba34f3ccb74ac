"""A request is stored, answered, carried out; killed at any moment, the rest follows once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from slm_core.errors import IllegalPromotion, StoreError
from slm_core.records import (
    Approval,
    ApprovalState,
    RiskTier,
    Stage,
    TrafficKey,
    TrafficOutcome,
    TrafficRole,
)
from slm_core.serving import PromotionSpec, carry_out, needs_person, request_approval
from slm_core.store import Store, open_store
from slm_core.testing.records import make_adapter, make_decision
from slm_core.testing.routes import move
from slm_core.testing.scores import MADE_AT

ADAPTER = make_adapter()
SPEC = PromotionSpec()
AGENTS = ("desk", "intake")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/slm.db"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with open_store(url) as store:
        add(store, ADAPTER.id)
        for agent in AGENTS:
            move(store, Stage.CANDIDATE, agent)
        yield store


def add(store: Store, adapter_id: str, **changes: Any) -> None:
    store.adapters.save(make_adapter(id=adapter_id, **changes))
    store.decisions.save(make_decision(id=f"decision-{adapter_id}", adapter_id=adapter_id))


def ask(store: Store, run_id: str = "run-1", spec: PromotionSpec = SPEC, **what: Any) -> Approval:
    return request_approval(store, spec, run_id=run_id, **what)


def approve(store: Store, approval: Approval, who: str = "ann") -> Approval:
    return store.approvals.decide(approval.id, ApprovalState.APPROVED, who=who, reason="good")


def see(store: Store, role: TrafficRole, agent: str = "desk", **counts: int) -> None:
    """Let traffic have happened on the route as it is now."""
    route = store.routes.find(agent, "toolcall", ADAPTER.id)
    assert route is not None
    key = TrafficKey(
        agent_name=agent,
        track="toolcall",
        adapter_id=ADAPTER.id,
        version=route.version,
        role=role,
        outcome=TrafficOutcome.AGREED,
    )
    store.traffic.add(
        {key.model_copy(update={"outcome": TrafficOutcome(k)}): n for k, n in counts.items()}
    )


def stages(store: Store) -> dict[str, Stage]:
    return {r.agent_name: r.stage for r in store.routes.list() if r.adapter_id == ADAPTER.id}


def test_the_newest_candidate_is_asked_for_on_all_its_routes(store: Store) -> None:
    add(store, "adapter-older", created_at=MADE_AT - timedelta(days=1))
    move(
        store,
        Stage.CANDIDATE,
        adapter=make_adapter(id="adapter-older"),
        decision=make_decision(adapter_id="adapter-older"),
    )
    asked = ask(store)
    assert asked.adapter_id == ADAPTER.id
    assert [(m.agent_name, m.from_stage, m.to_stage) for m in asked.moves] == [
        (agent, Stage.CANDIDATE, Stage.SHADOW) for agent in AGENTS
    ]
    assert asked.expires_at - asked.created_at == timedelta(days=7)
    assert ask(store, adapter_id="adapter-older") == asked, "a run asks once"
    (one,) = ask(store, "run-2", agent_name="intake").moves
    assert one.agent_name == "intake"


def test_what_was_live_is_known_before_anything_moves(store: Store) -> None:
    add(store, "adapter-live")
    move(
        store,
        Stage.LIVE,
        adapter=make_adapter(id="adapter-live"),
        decision=make_decision(adapter_id="adapter-live"),
        auto_approve=True,
    )
    move(store, Stage.SHADOW)
    move(store, Stage.CANARY, share=0.1)
    see(store, "shadow", agreed=100)
    see(store, "answer", answered=100)
    asked = ask(store, adapter_id=ADAPTER.id, agent_name="desk")
    assert [m.live_adapter_id for m in asked.moves] == ["adapter-live"]
    carry_out(store, approve(store, asked))
    assert store.routes.history("desk", "toolcall")[-1].previous_adapter_id == "adapter-live"
    live = store.routes.live("desk", "toolcall")
    assert live is not None
    assert live.adapter_id == ADAPTER.id


@pytest.mark.parametrize(
    ("stage", "seen", "problem"),
    [
        (Stage.SHADOW, {}, "0 of 0, 100 are needed"),
        (Stage.SHADOW, {"shadow": {"agreed": 99}}, "100 are needed"),
        (Stage.SHADOW, {"shadow": {"agreed": 60, "disagreed": 60}}, "disagreement is fail"),
        (Stage.SHADOW, {"shadow": {"agreed": 75, "disagreed": 28}}, "disagreement is inconc"),
        (Stage.SHADOW, {"shadow": {"agreed": 100, "format": 20}}, "fall_backs is fail"),
        (Stage.CANARY, {"shadow": {"agreed": 200}}, "fall_backs is inconclusive, 0 of 0"),
        (Stage.CANARY, {"answer": {"answered": 200}}, "disagreement is inconclusive, 0 of 0"),
        (
            Stage.CANARY,
            {"shadow": {"agreed": 200}, "answer": {"answered": 95, "timeout": 5}},
            "fall_backs is inconclusive, 5 of 100",
        ),
    ],
)
def test_missing_or_bad_evidence_is_never_a_pass(
    store: Store, stage: Stage, seen: dict[TrafficRole, dict[str, int]], problem: str
) -> None:
    move(store, Stage.SHADOW)
    if stage is Stage.CANARY:
        move(store, Stage.CANARY, share=0.1)
    for role, counts in seen.items():
        see(store, role, **counts)
    with pytest.raises(IllegalPromotion, match=problem):
        ask(store, adapter_id=ADAPTER.id, agent_name="desk")
    assert store.approvals.list() == ()


def test_steps_are_not_skipped_and_a_failure_is_not_asked_for(store: Store) -> None:
    for stage in (Stage.CANARY, Stage.LIVE, Stage.RETIRED):
        with pytest.raises(IllegalPromotion, match="cannot go from candidate"):
            ask(store, to_stage=stage)
    with pytest.raises(IllegalPromotion, match="no route on its way"):
        ask(store, adapter_id=ADAPTER.id, agent_name="nobody")
    later = MADE_AT.replace(year=2027)
    store.decisions.save(make_decision("PARTIAL", id="later", created_at=later))
    with pytest.raises(IllegalPromotion, match="PARTIAL"):
        ask(store)


def test_without_a_candidate_it_says_what_to_do(store: Store) -> None:
    for agent in AGENTS:
        move(store, Stage.SHADOW, agent)
    with pytest.raises(IllegalPromotion, match="slm routes list"):
        ask(store)


def test_only_a_low_risk_needs_nobody(store: Store) -> None:
    assert PromotionSpec().risk is RiskTier.HIGH
    spec = PromotionSpec(risk=RiskTier.LOW, risk_of={"desk/toolcall": RiskTier.MEDIUM})
    assert needs_person(ask(store, "a", spec))
    assert needs_person(ask(store, "b", spec, agent_name="desk"))
    assert not needs_person(ask(store, "c", spec, agent_name="intake"))
    by_agent = PromotionSpec(risk_of={"desk": RiskTier.LOW})
    assert not needs_person(ask(store, "d", by_agent, agent_name="desk"))


@pytest.mark.parametrize("state", [ApprovalState.REJECTED, ApprovalState.WAITING])
def test_what_was_not_approved_is_not_carried_out(store: Store, state: ApprovalState) -> None:
    asked = ask(store)
    if state is not ApprovalState.WAITING:
        asked = store.approvals.decide(asked.id, state, who="ann", reason="no")
    with pytest.raises(IllegalPromotion, match=f"is {state}"):
        carry_out(store, asked)
    assert stages(store) == dict.fromkeys(AGENTS, Stage.CANDIDATE)


def test_a_request_that_was_overtaken_moves_what_it_still_can(store: Store) -> None:
    first, second = (approve(store, ask(store, run), who=run) for run in ("run-1", "run-2"))
    only_desk = approve(store, ask(store, "run-3", agent_name="desk"), who="run-3")
    carry_out(store, only_desk)
    with pytest.raises(StoreError, match="1 of 2 moves") as caught:
        carry_out(store, first)
    assert caught.value.context["moved"] == ["intake/toolcall"]
    with pytest.raises(StoreError, match="2 of 2 moves"):
        carry_out(store, second)
    assert stages(store) == dict.fromkeys(AGENTS, Stage.SHADOW)
    assert [m.who for m in store.routes.history("intake", "toolcall")] == ["setup", "run-1"]


def test_traffic_that_turned_bad_while_a_person_thought_is_refused(store: Store) -> None:
    for agent in AGENTS:
        move(store, Stage.SHADOW, agent)
        see(store, "shadow", agent, agreed=100)
    asked = approve(store, ask(store, adapter_id=ADAPTER.id))
    see(store, "shadow", agreed=10, disagreed=200)
    with pytest.raises(IllegalPromotion, match=r"1 of 2 moves .* disagreement, 200 of 310"):
        carry_out(store, asked)
    assert stages(store) == {"desk": Stage.SHADOW, "intake": Stage.CANARY}
    stored = store.approvals.get(asked.id)
    assert stored.state is ApprovalState.APPROVED
    assert "disagreement, 200 of 310" in (stored.refused or "")
    see(store, "shadow", agreed=30_000)
    carry_out(store, stored)
    assert stages(store) == dict.fromkeys(AGENTS, Stage.CANARY)
    assert store.approvals.get(asked.id).refused is None
    assert store.verify() == []


def test_a_refusal_stays_on_record_when_others_then_move_the_route(store: Store) -> None:
    move(store, Stage.SHADOW)
    see(store, "shadow", agreed=100)
    asked = approve(store, ask(store, adapter_id=ADAPTER.id, agent_name="desk"))
    see(store, "shadow", disagreed=300)
    with pytest.raises(IllegalPromotion):
        carry_out(store, asked)
    move(store, Stage.RETIRED)  # as the refusal advises
    with pytest.raises(StoreError):
        carry_out(store, store.approvals.get(asked.id))
    assert "disagreement, 300 of 400" in (store.approvals.get(asked.id).refused or "")


def test_what_was_moved_stays_moved_whatever_the_traffic_says_then(store: Store) -> None:
    move(store, Stage.SHADOW)
    see(store, "shadow", agreed=100)
    asked = approve(store, ask(store, adapter_id=ADAPTER.id, agent_name="desk"))
    (route,) = carry_out(store, asked)
    see(store, "shadow", disagreed=300)
    assert carry_out(store, asked) == [route]
    assert store.approvals.get(asked.id).refused is None


def test_another_share_of_a_canary_needs_no_evidence(store: Store) -> None:
    move(store, Stage.SHADOW)
    move(store, Stage.CANARY, share=0.5)
    see(store, "shadow", disagreed=300)
    asked = ask(store, adapter_id=ADAPTER.id, agent_name="desk", to_stage=Stage.CANARY)
    assert [one.share for one in carry_out(store, approve(store, asked))] == [0.1]


def test_killed_at_any_statement_the_rest_follows_once(store: Store, url: str) -> None:
    """SIGKILL before the n-th statement that reaches the database, for every n."""
    asked = ask(store)

    def finish(own: Store) -> None:
        carry_out(own, approve(own, asked))

    kills = 0
    for statement in range(1, 100):
        if not killed_at(url, statement, finish):
            break
        kills += 1
        done = [s for s in stages(store).values() if s is Stage.SHADOW]
        state = store.approvals.get(asked.id).state
        assert not done or state is ApprovalState.APPROVED, "nothing moves before the answer"
    assert kills > 5
    finish(store)
    assert stages(store) == dict.fromkeys(AGENTS, Stage.SHADOW)
    for agent in AGENTS:
        moves = store.routes.history(agent, "toolcall")
        assert [(m.who, m.to_stage) for m in moves] == [
            ("setup", Stage.CANDIDATE),
            ("ann", Stage.SHADOW),
        ]
    assert store.verify() == []


def killed_at(url: str, number: int, work: Any) -> bool:
    """Do ``work`` in a child that kills itself before its n-th statement; return whether it did."""
    child = os.fork()
    if child == 0:
        seen = 0

        def count(*_: Any) -> None:
            nonlocal seen
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            with open_store(url) as own:
                sa.event.listen(sa.Engine, "before_cursor_execute", count)
                work(own)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)
