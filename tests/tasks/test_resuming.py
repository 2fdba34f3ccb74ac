"""Which runs may be gone on with, asked of a real Prefect server; when their claims are free."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from uuid import uuid4

import pytest
from prefect import get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.states import (
    Cancelled,
    Completed,
    Crashed,
    Failed,
    Paused,
    Pending,
    Running,
    Scheduled,
    Submitting,
)

from slm_core.errors import RecordNotFound, RecoveryExhausted, RunBusy, StoreError
from slm_core.records import ClaimState, RunState, utc_now
from slm_core.store import Store
from slm_core.testing.records import make_call
from slm_core.testing.training_runs import make_order
from slm_core.training.orders import Order
from tasks import _flow_runs
from tasks._wiring import order_book
from tasks.capture import take_claim
from tasks.resuming import (
    MAX_ATTEMPTS,
    bury_silent_runs,
    find_run,
    go_on,
    is_gone_for_good,
    overdue_runs,
)

MakeRun = Callable[..., FlowRun]
Later = Callable[[timedelta], None]


def ordered(run: FlowRun, state: RunState = RunState.RUNNING, **changes: object) -> Order:
    order = make_order(str(run.id), state=state, **changes)
    order_book().write(order)
    return order


def state_of(run: FlowRun) -> tuple[StateType, str | None]:
    now = _flow_runs.find(str(run.id))
    assert now is not None
    assert now.state is not None
    return now.state.type, now.state.name


def claimed_by(store: Store, owner: str) -> str:
    store.calls.add([make_call(n) for n in range(3)], lambda _: None)
    (claim,) = store.claims.make(3)
    store.claims.take(claim.id, owner)
    return claim.id


@pytest.mark.parametrize("state", [Crashed(), Failed(), Cancelled()], ids=lambda s: s.type.value)
def test_an_ended_run_begins_again_as_itself(store: Store, make_run: MakeRun, state: State) -> None:
    run = make_run(Running(), state.model_copy())
    assert "attempt 2 of 3" in go_on(find_run(str(run.id)))
    assert state_of(run) == (StateType.SCHEDULED, "AwaitingRetry")
    assert "waits to begin already" in go_on(find_run(str(run.id)))


def test_a_run_is_found_by_its_own_id_by_its_flow_runs_and_as_the_newest(
    store: Store, make_run: MakeRun
) -> None:
    run = make_run(Running(), Crashed())
    order = ordered(run).model_copy(update={"run_id": "run-1"})
    order_book().write(order)
    for asked in ("run-1", None):
        found = find_run(asked)
        assert found.flow_run is not None
        assert (found.run_id, found.flow_run.id, found.can_be_retried) == ("run-1", run.id, True)
    with pytest.raises(RecordNotFound):
        find_run("run-2")


def test_a_run_that_no_worker_can_begin_again_is_told_apart(
    store: Store, make_run: MakeRun
) -> None:
    order_book().write(Order(run_id="by-hand", flow="train", spec={}))
    assert not find_run("by-hand").can_be_retried
    other = make_run(Running(), Crashed(), of="something-else")
    ordered(other)
    assert not find_run(str(other.id)).can_be_retried
    with pytest.raises(RecordNotFound):
        find_run(str(make_run(Crashed(), of="something-else").id))


def test_a_completed_run_is_left_as_it_is(store: Store, make_run: MakeRun) -> None:
    run = make_run(Running(), Completed())
    assert "is done" in go_on(find_run(str(run.id)))
    assert state_of(run)[0] is StateType.COMPLETED


def test_a_run_whose_process_lives_is_refused_whatever_prefect_shows(
    store: Store, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.resuming.STOPPING_SECONDS", 0.1)
    run = make_run(Running(), Crashed())
    with order_book().carry_out(ordered(run)), pytest.raises(RunBusy, match="is at work"):
        go_on(find_run(str(run.id)))
    assert state_of(run)[0] is StateType.CRASHED


@pytest.mark.usefixtures("later")
def test_a_run_that_only_looks_alive_is_marked_and_begins_again(
    store: Store, make_run: MakeRun
) -> None:
    run = make_run(Running())
    ordered(run)
    go_on(find_run(str(run.id)))
    assert state_of(run) == (StateType.SCHEDULED, "AwaitingRetry")
    with get_client(sync_client=True) as client:
        states = [state.type for state in client.read_flow_run_states(run.id)]
    assert StateType.CRASHED in states


@pytest.mark.parametrize(("state", "minutes"), [(Running(), 1), (Pending(), 3)])
def test_a_run_that_may_be_about_to_begin_is_refused(
    store: Store, make_run: MakeRun, later: Later, state: State, minutes: int
) -> None:
    run = make_run(state.model_copy())
    later(timedelta(minutes=minutes))
    ordered(run)
    with pytest.raises(RunBusy, match="may be about to begin"):
        go_on(find_run(str(run.id)))
    assert "attempt 2" in go_on(find_run(str(run.id)), host_is_dead=True)


@pytest.mark.usefixtures("later")
def test_a_run_of_another_machine_is_refused_until_that_is_said_to_be_dead(
    store: Store, make_run: MakeRun
) -> None:
    run = make_run(Running())
    ordered(run, host="elsewhere")
    with pytest.raises(RunBusy, match="host_is_dead=true"):
        go_on(find_run(str(run.id)))
    assert "attempt 2" in go_on(find_run(str(run.id)), host_is_dead=True)


def test_a_run_that_was_begun_too_often_is_given_up_and_its_claim_is_free(
    store: Store, make_run: MakeRun
) -> None:
    run = make_run(Running(), Crashed(), retries=MAX_ATTEMPTS - 1)
    ordered(run)
    claim_id = claimed_by(store, str(run.id))
    for _ in range(2):
        with pytest.raises(RecoveryExhausted, match="begun 3 times"):
            go_on(find_run(str(run.id)))
    assert order_book().get(str(run.id)).state is RunState.FAILED
    assert store.claims.get(claim_id).state is ClaimState.RELEASED
    assert "attempt 4 of 4" in go_on(find_run(str(run.id)), max_attempts=4)


def test_a_run_that_others_went_on_with_meanwhile_is_left_to_them(
    store: Store, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(Running(), Crashed())
    ordered(run)

    def somebody_was_quicker(*_: object) -> None:
        with get_client(sync_client=True) as client:
            for state in (Scheduled(name="AwaitingRetry"), Running()):
                client.set_flow_run_state(run.id, state, force=True)

    monkeypatch.setattr("tasks.resuming._wait_for_its_end", somebody_was_quicker)
    assert "moved on meanwhile" in go_on(find_run(str(run.id)))
    assert state_of(run)[0] is StateType.RUNNING


def test_giving_up_is_done_again_when_it_was_cut_short(
    store: Store, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(Running(), Crashed(), retries=MAX_ATTEMPTS - 1)
    ordered(run)
    claim_id = claimed_by(store, str(run.id))

    def locked(*_: object) -> None:
        raise StoreError("The store is locked.")

    with monkeypatch.context() as patch:
        patch.setattr("slm_core.store.claims.Claims.release", locked)
        with pytest.raises(StoreError):
            go_on(find_run(str(run.id)))
    assert order_book().get(str(run.id)).state is RunState.RUNNING
    with pytest.raises(RecoveryExhausted):
        go_on(find_run(str(run.id)))
    assert store.claims.get(claim_id).state is ClaimState.RELEASED


def test_a_run_that_dies_before_its_first_line_is_not_begun_for_ever(
    store: Store, make_run: MakeRun
) -> None:
    run = make_run(Pending(), Crashed())
    for _ in range(MAX_ATTEMPTS - 1):
        go_on(find_run(str(run.id)))
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(run.id, Crashed(), force=True)
    with pytest.raises(RecoveryExhausted):
        go_on(find_run(str(run.id)))


def test_what_the_automations_missed_is_overdue(
    store: Store, make_run: MakeRun, later: Later
) -> None:
    crashed, silent, never_began = make_run(Crashed()), make_run(Running()), make_run(Pending())
    ordered(silent)
    server_died = make_run(Running(), Failed())
    ordered(server_died, RunState.INTERRUPTED)
    wanted = {str(run.id) for run in (crashed, silent, never_began, server_died)}

    assert wanted <= {one.run_id for one in overdue_runs()}
    later(timedelta(seconds=30))
    assert not wanted & {one.run_id for one in overdue_runs()}
    later(timedelta(days=2))  # what ended is history, what is shown at work holds its place
    unended = {str(silent.id), str(never_began.id)}
    assert wanted & {one.run_id for one in overdue_runs()} == unended


@pytest.mark.usefixtures("later")
def test_what_lives_has_ended_or_needs_a_person_is_not_overdue(
    store: Store, make_run: MakeRun
) -> None:
    runs = [
        make_run(Running(), Completed()),
        make_run(Running(), Cancelled()),
        make_run(Running()),  # without an order only its own machine can tell
        make_run(Running(), Crashed(), of="something-else"),
    ]
    elsewhere, failed = make_run(Running()), make_run(Running(), Failed())
    given_up, needs_person = make_run(Running(), Crashed()), make_run(Running(), Failed())
    ordered(elsewhere, host="elsewhere")
    ordered(failed, RunState.FAILED)
    ordered(given_up, RunState.FAILED)
    ordered(needs_person, RunState.INTERRUPTED, needs_person=True)
    runs += [elsewhere, failed, given_up, needs_person]
    busy = make_run(Running(), Crashed())
    with order_book().carry_out(ordered(busy)):
        found = {one.run_id for one in overdue_runs()}
    assert not {str(run.id) for run in (*runs, busy)} & found


def beat(run: FlowRun) -> None:
    """Let the server record a sign of life."""
    event = {
        "id": str(uuid4()),
        "event": "prefect.flow-run.heartbeat",
        "occurred": utc_now().isoformat(),
        "resource": {"prefect.resource.id": f"prefect.flow-run.{run.id}"},
    }
    with get_client(sync_client=True) as client:
        client.request("POST", "/events", json=[event])
    deadline = time.monotonic() + 60
    while _flow_runs.seconds_since_heartbeat(run) is None:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_run_that_fell_silent_unnoticed_is_marked_whatever_its_flow(
    store: Store, make_run: MakeRun, later: Later, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.resuming._SECOND_LOOK_SECONDS", 0.0)
    silent, busy, unknown = make_run(Running(), of="eval"), make_run(Running()), make_run(Running())
    never_began, asking = make_run(Submitting(), of="eval"), make_run(Running(), of="promote")
    waiting = make_run(Running(), Paused(), of="promote")
    for run in (silent, busy, asking, waiting):
        beat(run)
    with order_book().carry_out(ordered(busy)):
        later(timedelta(minutes=2))
        assert bury_silent_runs() == []
        later(timedelta(days=2))
        dead = {silent.name, never_began.name, asking.name}
        assert dead <= set(bury_silent_runs())
    assert {state_of(run)[0] for run in (silent, never_began, asking)} == {StateType.CRASHED}
    assert state_of(waiting)[0] is StateType.PAUSED
    with get_client(sync_client=True) as client:  # the server is that of other tests too
        client.set_flow_run_state(waiting.id, Cancelled(), force=True)
    assert [state_of(run)[0] for run in (busy, unknown)] == [StateType.RUNNING] * 2


def test_a_claim_is_free_once_its_run_is_gone_for_good(
    store: Store, make_run: MakeRun, later: Later
) -> None:
    gone = {
        "cancelled": make_run(Running(), Cancelled()),
        "out of attempts": make_run(Running(), Crashed(), retries=2),
    }
    failed = make_run(Running(), Failed())
    ordered(failed, RunState.FAILED)
    kept = {
        "about to be resumed": make_run(Running(), Crashed()),
        "about to begin again": make_run(Scheduled(name="AwaitingRetry"), retries=1),
        "at work, for all we know": make_run(Running()),
    }
    assert [why for why, run in gone.items() if not is_gone_for_good(str(run.id))] == []
    assert is_gone_for_good(str(failed.id))
    assert [why for why, run in kept.items() if is_gone_for_good(str(run.id))] == []
    assert not is_gone_for_good("a-run-of-some-terminal")
    later(timedelta(days=2))
    assert is_gone_for_good(str(kept["about to be resumed"].id))
    assert not is_gone_for_good(str(kept["at work, for all we know"].id))


def test_the_nightly_run_takes_over_from_a_dead_run_and_never_from_one_to_be_resumed(
    store: Store, make_run: MakeRun
) -> None:
    run = make_run(Running(), Crashed())
    claim_id = claimed_by(store, str(run.id))
    assert take_claim.fn(None, "tonight") is None
    assert store.claims.get(claim_id).owner == str(run.id)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run.id, Cancelled(), force=True)
    taken = take_claim.fn(None, "tonight")
    assert taken is not None
    assert (taken.id, taken.owner, taken.attempts) == (claim_id, "tonight", 2)
