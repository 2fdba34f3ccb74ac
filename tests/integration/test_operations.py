"""A whole stack at work: a training is cancelled, or its flow is killed, and nothing is lost.

``python -m benchmarks.chaos`` does the same to every part, many times.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect import get_client
from prefect.events.actions import ChangeFlowRunState, DoNothing, RunDeployment
from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger
from prefect.settings import PREFECT_API_URL, temporary_settings

from benchmarks.chaos import new_claim, run_of, strike, trainers
from benchmarks.chaos_stack import Service
from slm_core.records import ClaimState, RunState
from slm_core.training.events import read_events
from tasks._automations import OURS, RESUME, crash_automations, reconcile

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]
GONE_SECONDS = 15.0
THEIRS = "somebody else's"
SLOW_SECONDS = 600.0
MINUTES_OF_EPOCHS = 2000


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    # Not pytest's folder: PostgreSQL runs as another user when we are root.
    folder = Path(tempfile.mkdtemp(prefix="slm-operations-"))
    folder.chmod(0o755)
    with Service(folder) as service:
        yield service
    shutil.rmtree(folder)


def eventually(check: Callable[[], Any], seconds: float = SLOW_SECONDS) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.1)
    return found


def cancel(service: Service, run_id: str) -> None:
    """Do what the button does."""
    cancelling = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
    service.ask("POST", f"/flow_runs/{run_id}/set_state", cancelling)


def state_of(service: Service, run_id: str) -> str:
    return service.get(f"/flow_runs/{run_id}")["state"]["type"]


def test_a_cancelled_training_saves_and_has_left_within_15_seconds(service: Service) -> None:
    service.plan(epochs=MINUTES_OF_EPOCHS)
    claim = new_claim(service)
    run_id = eventually(lambda: run_of(service, claim))
    training = service.home / "runs" / run_id / "training"
    eventually(lambda: len(read_events(training / "events.jsonl")) > 2)
    (trainer,) = trainers(service, run_id)

    cancel(service, run_id)
    eventually(lambda: not psutil.pid_exists(trainer), GONE_SECONDS)
    steps = [event.step for event in read_events(training / "events.jsonl")]
    assert (training / "checkpoints" / f"step-{steps[-1]:08d}").is_dir()

    eventually(lambda: state_of(service, run_id) == "CANCELLED")
    stopped = service.order(run_id)
    assert (stopped["state"], stopped["cancelled"]) == (RunState.INTERRUPTED, True)
    with service.store() as store:
        assert store.claims.get(claim.id).state is ClaimState.RELEASED

    service.start("resume/run", run_id=run_id)  # somebody changed their mind
    eventually(lambda: len(read_events(training / "events.jsonl")) > len(steps))
    gone_on = [event.step for event in read_events(training / "events.jsonl")]
    assert gone_on[: len(steps) + 1] == [*steps, steps[-1] + 1]
    with service.store() as store:
        held = store.claims.get(claim.id)
        assert (held.state, held.owner, held.attempts) == (ClaimState.RUNNING, run_id, 2)
    cancel(service, run_id)
    eventually(lambda: state_of(service, run_id) == "CANCELLED")


def test_a_killed_flow_takes_its_trainer_along_and_goes_on_by_itself(service: Service) -> None:
    service.plan(epochs=20)
    row = strike(service, 1, "flow", random.Random(0), patience=SLOW_SECONDS, stage="training")
    assert row.problems == []
    assert (row.noticed, row.finished) == (
        "the Prefect worker",
        "the automation, by resume/run",
    )
    assert row.attempts == 2


@pytest.fixture
def server(service: Service) -> Iterator[None]:
    """The stack's server is this process's, and has one automation that is not ours."""
    with (
        temporary_settings({PREFECT_API_URL: service.api}),
        get_client(sync_client=True) as client,
    ):
        theirs = client.create_automation(declared(THEIRS, "x"))
        yield
        client.delete_automation(theirs)
        reconcile(crash_automations())


def declared(name: str, *events: str) -> AutomationCore:
    return AutomationCore(
        name=name, trigger=EventTrigger(expect=set(events)), actions=[DoNothing()]
    )


def on_server() -> dict[str, Automation]:
    with get_client(sync_client=True) as client:
        return {one.name: one for one in client.read_automations()}


def ids() -> dict[str, object]:
    return {name: one.id for name, one in on_server().items()}


@pytest.mark.usefixtures("server")
def test_the_server_has_the_automations_that_are_declared_and_no_more_of_ours() -> None:
    first, second = OURS + "first", OURS + "second"
    reconcile([declared(first, "a", "b"), declared(second, "c")])
    made = ids()
    assert made.keys() == {THEIRS, first, second}

    reconcile([declared(first, "b", "a"), declared(second, "c")])
    assert ids() == made

    with get_client(sync_client=True) as client:
        client.pause_automation(on_server()[first].id)
    reconcile([declared(first, "a", "new")])
    assert ids() == {THEIRS: made[THEIRS], first: made[first]}
    changed = on_server()[first]
    assert isinstance(changed.trigger, EventTrigger)
    assert changed.trigger.expect == {"a", "new"}
    assert not changed.enabled  # as a person left it

    for names in (["not ours"], [OURS + "twice", OURS + "twice"]):
        with pytest.raises(ValueError, match="names of their own"):
            reconcile([declared(name) for name in names])


@pytest.mark.usefixtures("server")
def test_dead_runs_are_marked_within_two_minutes_and_trainings_resumed() -> None:
    silent, never_began, crashed = crash_automations()
    for one, seconds in ((silent, 120), (never_began, 600)):
        assert isinstance(one.trigger, EventTrigger)
        assert one.trigger.within.total_seconds() < seconds
        (mark,) = one.actions
        assert isinstance(mark, ChangeFlowRunState)
        assert not mark.force  # a run that has ended meanwhile stays as it is
    (start,) = crashed.actions
    assert isinstance(start, RunDeployment)
    with get_client(sync_client=True) as client:
        assert start.deployment_id == client.read_deployment_by_name(RESUME).id
    assert start.parameters == {"run_id": "{{ flow_run.id | string }}", "max_attempts": 3}
