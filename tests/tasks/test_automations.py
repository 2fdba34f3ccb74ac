"""Which runs the automations are about, asked of the server's own matching."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.client.schemas.objects import FlowRun
from prefect.flow_engine import FlowRunEngine
from prefect.server.events.schemas.automations import EventTrigger
from prefect.server.events.schemas.events import RelatedResource, Resource
from prefect.states import InfrastructurePending, Pending, Submitting

from tasks._automations import PENDING_NAMES, _crash_when_silent
from tasks.resuming import PENDING_SECONDS


@flow(name="retrain")
def retrain() -> None: ...


@flow(name="promote")
def promote() -> None: ...


@pytest.mark.parametrize(
    ("of", "deployment", "watched"),
    [(retrain, uuid4(), True), (retrain, None, False), (promote, uuid4(), False)],
    ids=["of a deployment", "begun in a terminal", "of a flow that waits for people"],
)
def test_heartbeats_of_deployments_are_listened_for(
    of: object, deployment: UUID | None, watched: bool
) -> None:
    run = FlowRun(flow_id=uuid4(), deployment_id=deployment)
    engine = FlowRunEngine(flow=of, flow_run=run)  # type: ignore[arg-type]
    resource, related = engine._build_heartbeat_event_template()
    declared = _crash_when_silent("x", {"prefect.flow-run.heartbeat"}, 90, "no heartbeat").trigger
    trigger = EventTrigger.model_validate(declared.model_dump())
    about = [RelatedResource.model_validate(one.model_dump()) for one in related]
    assert trigger.covers_resources(Resource.model_validate(resource), about) == watched


def test_a_worker_that_dies_in_any_of_the_states_before_running_is_waited_for() -> None:
    names = {made().name for made in (Pending, Submitting, InfrastructurePending)}
    assert set(PENDING_NAMES) == names
    events = {f"prefect.flow-run.{name}" for name in names}
    declared = _crash_when_silent("x", events, PENDING_SECONDS, "pending").trigger
    trigger = EventTrigger.model_validate(declared.model_dump())
    # Each ends the wait for the one before, so each has to begin one of its own.
    assert all(trigger.starts_after(event) and trigger.expects(event) for event in events)
