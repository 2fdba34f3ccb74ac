"""What the automations missed is gone on with; one run that cannot go on holds up no other."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from prefect import flow, get_client
from prefect.client.schemas.objects import State, StateType
from prefect.states import Crashed, Running, Scheduled

from flows.resume_overdue import resume_overdue
from slm_core.errors import StoreError
from slm_core.records import ClaimState, utc_now
from tasks import _flow_runs

pytestmark = pytest.mark.integration


@flow(name="retrain")
def retrain() -> None: ...


@pytest.fixture(autouse=True)
def no_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that other tests left on the server fell silent; they are not waited for."""
    monkeypatch.setattr("tasks.resuming._SECOND_LOOK_SECONDS", 0.0)


def crashed_run(*before: State) -> UUID:
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow(retrain), name="overdue")
        run = client.create_flow_run_from_deployment(deployment)
        for state in (*before, Running(), Crashed()):
            client.set_flow_run_state(run.id, state, force=True)
    return run.id


def test_dead_trainings_begin_again_and_hopeless_ones_give_their_claim_back(
    service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    twice = [Running(), Crashed(), Scheduled(name="AwaitingRetry")] * 2
    hopeless, dead = crashed_run(*twice), crashed_run()
    claim_id = service.claimed()
    with service.store() as store:
        store.claims.take(claim_id, str(hopeless))
    monkeypatch.setattr(_flow_runs, "utc_now", lambda: utc_now() + timedelta(minutes=5))

    state = resume_overdue(return_state=True)

    assert state.type is StateType.COMPLETED
    assert "dead runs found" in str(state.message)
    now = _flow_runs.find(str(dead))
    assert now is not None
    assert _flow_runs.state_of(now) is StateType.SCHEDULED
    with service.store() as store:
        assert store.claims.get(claim_id).state is ClaimState.RELEASED


def test_one_that_cannot_be_given_up_keeps_no_other_waiting(
    service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    twice = [Running(), Crashed(), Scheduled(name="AwaitingRetry")] * 2
    hopeless, dead = crashed_run(*twice), crashed_run()
    claim_id = service.claimed()
    with service.store() as store:
        store.claims.take(claim_id, str(hopeless))

    def locked(*_: object) -> None:
        raise StoreError("The store is locked.")

    monkeypatch.setattr("slm_core.store.claims.Claims.release", locked)
    monkeypatch.setattr(_flow_runs, "utc_now", lambda: utc_now() + timedelta(minutes=5))
    assert resume_overdue(return_state=True).type is StateType.COMPLETED
    now = _flow_runs.find(str(dead))
    assert now is not None
    assert _flow_runs.state_of(now) is StateType.SCHEDULED
