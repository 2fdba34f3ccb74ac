"""Automations on a real Prefect server: made once, kept as declared, removed when no more so."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

import pytest
from prefect import flow, get_client
from prefect.events.actions import ChangeFlowRunState, DoNothing, RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger

from tasks._automations import OURS, RESUME, crash_automations, reconcile

THEIRS = "somebody else's"


@pytest.fixture
def nobody_elses(prefect_server: None) -> Iterator[None]:
    """The server, with one automation that is not ours."""
    with get_client(sync_client=True) as client:
        client.create_automation(declared(THEIRS))
        yield
        for one in client.read_automations():
            client.delete_automation(one.id)


def declared(name: str, *events: str) -> AutomationCore:
    return AutomationCore(
        name=name, trigger=EventTrigger(expect=set(events)), actions=[DoNothing()]
    )


def on_server() -> dict[str, tuple[UUID, bool, set[str]]]:
    with get_client(sync_client=True) as client:
        return {
            one.name: (one.id, one.enabled, one.trigger.expect)
            for one in client.read_automations()
            if isinstance(one.trigger, EventTrigger)
        }


@pytest.mark.usefixtures("nobody_elses")
def test_the_server_is_made_to_have_what_is_declared_and_no_more_of_ours() -> None:
    first, second = OURS + "first", OURS + "second"
    reconcile([declared(first, "a", "b"), declared(second, "c")])
    made = on_server()
    assert made.keys() == {THEIRS, first, second}

    reconcile([declared(first, "b", "a"), declared(second, "c")])
    assert on_server() == made  # another id, or an update, would forget what was counted

    with get_client(sync_client=True) as client:
        client.pause_automation(made[first][0])
    reconcile([declared(first, "a", "new")])
    now = on_server()
    assert now.keys() == {THEIRS, first}
    assert now[first] == (made[first][0], False, {"a", "new"})  # off, as a person left it


@pytest.mark.usefixtures("nobody_elses")
@pytest.mark.parametrize("names", [["not ours"], [OURS + "twice", OURS + "twice"]])
def test_a_name_that_is_not_ours_or_not_unique_is_refused(names: list[str]) -> None:
    with pytest.raises(ValueError, match="names of their own"):
        reconcile([declared(name) for name in names])
    assert on_server().keys() == {THEIRS}


@flow(name="resume")
def resume(run_id: str, max_attempts: int) -> None: ...


@pytest.mark.usefixtures("nobody_elses")
def test_dead_runs_are_marked_within_two_minutes_and_trainings_resumed() -> None:
    with get_client(sync_client=True) as client:
        name = RESUME.split("/")[1]
        deployment = client.create_deployment(client.create_flow(resume), name=name)
    reconcile(crash_automations())
    reconcile(crash_automations())
    assert len(on_server()) == 4
    silent, never_began, crashed = crash_automations()
    for one, seconds in ((silent, 120), (never_began, 600)):
        assert isinstance(one.trigger, EventTrigger)
        assert one.trigger.within.total_seconds() < seconds
        (mark,) = one.actions
        assert isinstance(mark, ChangeFlowRunState)
        assert not mark.force  # a run that has ended meanwhile stays as it is
    (start,) = crashed.actions
    assert isinstance(start, RunDeployment)
    assert start.deployment_id == deployment
    assert start.parameters == {"run_id": "{{ flow_run.id | string }}", "max_attempts": 3}
