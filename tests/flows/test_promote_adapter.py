"""A run asks, suspends, and goes on when a person has answered; whatever kills it meanwhile."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterId,
)
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import Pause
from prefect.flow_engine import run_flow
from prefect.flow_runs import FlowPauseTimeout, resume_flow_run
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Cancelled, Crashed, Scheduled

from flows.promote_adapter import promote_adapter
from slm_core.records import ApprovalState, RiskTier, Stage, TrafficKey, TrafficOutcome
from slm_core.serving import PromotionSpec
from slm_core.store import Store
from slm_core.testing.records import make_adapter
from slm_core.testing.routes import move
from tasks import promotion, settling

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
ADAPTER = make_adapter()
APPROVE = {"decision": "approve", "approver": "ann", "reason": "the gates passed"}
AGENTS = ("desk", "intake")


@pytest.fixture(scope="module")
def deployment_id(prefect_server: None) -> Iterator[UUID]:
    found = promote_adapter.to_deployment(name="adapter").apply()
    yield found
    with get_client(sync_client=True) as client:  # the server is that of other tests too
        ours = DeploymentFilter(id=DeploymentFilterId(any_=[found]))
        for run in client.read_flow_runs(deployment_filter=ours):
            client.delete_flow_run(run.id)


@pytest.fixture
def client(prefect_server: None) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


def stages(store: Store) -> dict[str, Stage]:
    return {route.agent_name: route.stage for route in store.routes.list()}


class Run:
    """One flow run of the deployment, executed in this process as often as it is scheduled."""

    def __init__(self, client: SyncPrefectClient, deployment_id: UUID, **parameters: Any) -> None:
        self.client = client
        self.id = client.create_flow_run_from_deployment(deployment_id, parameters=parameters).id

    def read(self) -> FlowRun:
        return self.client.read_flow_run(self.id)

    def execute(self) -> State[Any]:
        run = self.read()
        with suppress(Pause):
            run_flow(promote_adapter, flow_run=run, parameters=run.parameters, return_type="state")
        state = self.read().state
        assert state is not None
        return state

    def answer(self, **run_input: Any) -> None:
        resume_flow_run(self.id, run_input=run_input)

    def is_at(self, task: str) -> bool:
        """Whether a task of that name runs."""
        runs = self.client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[self.id])),
        )
        return any(r.name == task and r.state and r.state.is_running() for r in runs)

    def retry(self) -> None:
        again = Scheduled(name="AwaitingRetry")
        assert self.client.set_flow_run_state(self.id, again).status.value == "ACCEPT"


@pytest.fixture
def start(client: SyncPrefectClient, deployment_id: UUID) -> Callable[..., Run]:
    return lambda **parameters: Run(client, deployment_id, **parameters)


def test_a_run_suspends_and_goes_on_as_the_person_says(
    store: Store, start: Callable[..., Run], told: list[Any]
) -> None:
    run = start()
    state = run.execute()
    assert (state.name, state.is_paused()) == ("Suspended", True)
    assert stages(store) == {"desk": Stage.CANDIDATE, "intake": Stage.CANDIDATE}
    (waiting,) = store.approvals.waiting()
    assert [m.agent_name for m in waiting.moves] == list(AGENTS)

    run.answer(**APPROVE)
    state = run.execute()

    assert (state.name, state.is_completed()) == ("Promoted", True)
    assert stages(store) == {"desk": Stage.SHADOW, "intake": Stage.SHADOW}
    decided = store.approvals.of_run(str(run.id))
    assert decided is not None
    assert (decided.state, decided.who, decided.reason) == (
        ApprovalState.APPROVED,
        "ann",
        "the gates passed",
    )
    last = store.routes.history("desk", "toolcall")[-1]
    assert (last.who, last.run_id) == ("ann", str(run.id))
    # Called once, though the flow began twice.
    assert [event for event, _ in told] == ["slm.promotion.waiting", "slm.promotion.decided"]


def test_the_form_shows_the_evidence_and_refuses_other_answers(
    store: Store, start: Callable[..., Run], client: SyncPrefectClient
) -> None:
    run = start(agent_name="desk", track="toolcall")
    run.execute()
    paused = run.read().state
    assert paused is not None
    keys = paused.state_details.run_input_keyset
    assert keys is not None
    text = client.read_flow_run_input(run.id, keys["description"])
    for fact in ("SUCCESS", ADAPTER.id, "gap_to_teacher", ADAPTER.dataset_id, "high", "teacher"):
        assert fact in text
    with pytest.raises(RuntimeError, match="maybe"):
        run.answer(decision="maybe", approver="ann", reason="x")
    with pytest.raises(RuntimeError, match="approver"):
        run.answer(decision="approve", reason="x")
    run.answer(decision="reject", approver="bob", reason="not in the holidays")
    state = run.execute()
    assert (state.name, state.is_completed()) == ("Rejected", True)
    assert stages(store)["desk"] is Stage.CANDIDATE
    decided = store.approvals.of_run(str(run.id))
    assert decided is not None
    assert (decided.state, decided.who) == (ApprovalState.REJECTED, "bob")


def test_nobody_answering_is_a_rejection(
    store: Store, start: Callable[..., Run], told: list[Any]
) -> None:
    hasty = PromotionSpec(approval_days=1.5 / 86_400)
    run = start(overrides=hasty.model_dump(mode="json"))
    assert run.execute().name == "Suspended"
    time.sleep(2)
    with pytest.raises((FlowPauseTimeout, RuntimeError)):
        run.answer(**APPROVE)

    assert [one.run_id for one in settling.close_requests.fn()] == [str(run.id)]

    decided = store.approvals.of_run(str(run.id))
    assert decided is not None
    assert (decided.state, decided.who) == (ApprovalState.EXPIRED, "timeout")
    assert stages(store) == {"desk": Stage.CANDIDATE, "intake": Stage.CANDIDATE}
    assert told[-1][1]["decision"] == ApprovalState.EXPIRED
    run.retry()
    assert run.execute().name == "Expired"


def test_an_answer_in_time_counts_though_its_run_goes_on_late(
    store: Store, start: Callable[..., Run]
) -> None:
    hasty = PromotionSpec(approval_days=4 / 86_400)
    run = start(overrides=hasty.model_dump(mode="json"))
    assert run.execute().name == "Suspended"
    run.answer(**APPROVE)
    time.sleep(4)  # no worker is there
    assert settling.close_requests.fn() == []
    assert run.execute().name == "Promoted"
    decided = store.approvals.of_run(str(run.id))
    assert decided is not None
    assert (decided.state, decided.who) == (ApprovalState.APPROVED, "ann")
    assert decided.decided_at is not None
    assert decided.decided_at < decided.expires_at


def test_a_low_risk_needs_nobody_and_a_mixed_request_does(
    store: Store, start: Callable[..., Run], told: list[Any]
) -> None:
    mixed = PromotionSpec(risk=RiskTier.LOW, risk_of={"desk": RiskTier.MEDIUM})
    assert start(overrides=mixed.model_dump(mode="json")).execute().name == "Suspended"
    low = PromotionSpec(risk_of={"intake": RiskTier.LOW}).model_dump(mode="json")
    assert start(agent_name="intake", overrides=low).execute().name == "Promoted"
    assert stages(store) == {"desk": Stage.CANDIDATE, "intake": Stage.SHADOW}
    assert store.routes.history("intake", "toolcall")[-1].who == "rule"
    assert [name for name, _ in told] == ["slm.promotion.waiting", "slm.promotion.decided"]


def test_without_evidence_nothing_is_even_asked(store: Store, start: Callable[..., Run]) -> None:
    move(store, Stage.SHADOW)
    run = start(adapter_id=ADAPTER.id, agent_name="desk")
    state = run.execute()
    assert state.is_failed()
    assert "0 of 0, 100 are needed" in str(state.message)
    assert store.approvals.list() == ()


def test_the_approver_sets_the_share_of_a_canary(store: Store, start: Callable[..., Run]) -> None:
    move(store, Stage.SHADOW)
    route = next(r for r in store.routes.list() if r.agent_name == "desk")
    key = TrafficKey(
        agent_name="desk",
        track="toolcall",
        adapter_id=ADAPTER.id,
        version=route.version,
        role="shadow",
        outcome=TrafficOutcome.AGREED,
    )
    store.traffic.add({key: 120})
    run = start(adapter_id=ADAPTER.id, agent_name="desk")
    assert run.execute().name == "Suspended"
    run.answer(**APPROVE, canary_share=0.25)
    assert run.execute().name == "Promoted"
    route = next(r for r in store.routes.list() if r.agent_name == "desk")
    assert (route.stage, route.share) == (Stage.CANARY, 0.25)
    (asked,) = store.approvals.list()
    assert [gate.verdict for gate in asked.moves[0].evidence] == ["pass", "pass"]


@pytest.mark.parametrize("finisher", ["retry", "settle"])
def test_an_answer_is_not_lost_when_the_run_dies_before_it_is_stored(
    store: Store, start: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, finisher: str
) -> None:
    run = start()
    run.execute()
    run.answer(**APPROVE)

    def die(*_: Any, **__: Any) -> None:
        raise OSError("the machine went away")

    with monkeypatch.context() as broken:
        broken.setattr(type(store.approvals), "decide", die)
        assert run.execute().is_failed()
    assert stages(store)["desk"] is Stage.CANDIDATE
    if finisher == "retry":
        run.retry()
        assert run.execute().name == "Promoted"  # nobody was asked again
    else:
        (closed,) = settling.close_requests.fn()
        assert (closed.state, closed.who, closed.reason) == ("approved", "ann", APPROVE["reason"])
        assert closed.decided_at is not None
        assert closed.decided_at < closed.expires_at
        settling.make_approved_moves.fn()
    assert stages(store) == {"desk": Stage.SHADOW, "intake": Stage.SHADOW}


def test_a_run_that_ended_unanswered_asks_again_when_retried(
    store: Store, start: Callable[..., Run]
) -> None:
    run = start()
    run.execute()
    run.client.set_flow_run_state(run.id, Cancelled(), force=True)
    run.retry()
    assert run.execute().name == "Suspended"
    run.answer(**APPROVE)
    assert run.execute().name == "Promoted"
    assert stages(store) == {"desk": Stage.SHADOW, "intake": Stage.SHADOW}


def test_of_two_runs_that_ask_the_same_one_moves(store: Store, start: Callable[..., Run]) -> None:
    first, second = start(), start()
    for run in (first, second):
        run.execute()
    for run in (first, second):
        run.answer(**APPROVE | {"approver": str(run.id)})
    assert first.execute().name == "Promoted"
    state = second.execute()
    assert state.is_failed()
    assert "2 of 2 moves" in str(state.message)
    assert {r.version for r in store.routes.list()} == {2}
    assert store.routes.history("desk", "toolcall")[-1].who == str(first.id)


def test_a_process_killed_during_the_switch_finishes_it_when_retried(
    store: Store, service: Any, start: Callable[..., Run]
) -> None:
    run = start()
    run.execute()
    run.answer(**APPROVE)
    environment = os.environ | {
        "PREFECT_API_URL": str(PREFECT_API_URL.value()),
        "SLM_HOME": str(service.folder),
    }
    held = sqlite3.connect(service.folder / "slm.db", isolation_level=None)
    held.execute("BEGIN IMMEDIATE")  # the run cannot write until this ends
    child = subprocess.Popen(
        [sys.executable, "-m", "prefect", "flow-run", "execute", str(run.id)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not run.is_at("store the answer"):
            assert child.poll() is None, child.stdout.read() if child.stdout else ""
            assert time.monotonic() < deadline
            time.sleep(0.2)
    finally:
        # The command runs the flow in a process of its own.
        for process in (*psutil.Process(child.pid).children(recursive=True), child):
            process.kill()
        child.communicate()
        held.execute("ROLLBACK")
        held.close()
    assert stages(store) == {"desk": Stage.CANDIDATE, "intake": Stage.CANDIDATE}
    run.client.set_flow_run_state(run.id, Crashed(message="its host died"), force=True)
    run.retry()
    assert run.execute().name == "Promoted"
    assert stages(store) == {"desk": Stage.SHADOW, "intake": Stage.SHADOW}
    assert len(store.routes.history("desk", "toolcall")) == 2
    (asked,) = store.approvals.list()
    assert asked.who == "ann"


def test_a_new_candidate_is_asked_about_once(
    store: Store, client: SyncPrefectClient, deployment_id: UUID
) -> None:
    adapter_id = make_adapter(id=f"adapter-{deployment_id}").id
    for _ in range(2):
        promotion.start_promotion(adapter_id, PromotionSpec())
    runs = [
        run
        for run in client.read_flow_runs()
        if run.deployment_id == deployment_id and run.parameters.get("adapter_id") == adapter_id
    ]
    assert len(runs) == 1
    assert runs[0].parameters["overrides"]["risk"] == "high"


def test_a_server_that_is_away_keeps_no_run_from_its_end(caplog: pytest.LogCaptureFixture) -> None:
    away = {PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}
    with temporary_settings(away):
        promotion.start_promotion("adapter-1", PromotionSpec())
    assert "candidate waits: the server was not reached adapter=adapter-1" in caplog.text


def test_rolling_back_once_however_often_the_run_is_tried(
    store: Store, start: Callable[..., Run]
) -> None:
    for number in (1, 2, 3):
        other = make_adapter(id=f"adapter-{number}")
        move(store, Stage.LIVE, adapter=other, auto_approve=True)
    run = start(roll_back=True, agent_name="desk", track="toolcall", reason="worse", who="ann")
    assert run.execute().name == "RolledBack"
    again = promotion.roll_back_route.fn(str(run.id), "desk", "toolcall", "ann", "worse")
    assert again.adapter_id == "adapter-2"
    live = store.routes.live("desk", "toolcall")
    assert live is not None
    assert live.adapter_id == "adapter-2"


def test_a_run_that_no_deployment_started_says_so(store: Store) -> None:
    state = promote_adapter(return_state=True)
    assert state.is_failed()
    assert "deployment run promote/adapter" in str(state.message)
    (asked,) = store.approvals.list()
    assert (asked.state, asked.who) == (ApprovalState.REJECTED, "rule")
