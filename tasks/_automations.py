"""What the Prefect server does by itself: automations, declared here and made so by name.

A run whose process dies together with its worker would stay *Running* for good, and one whose
worker died while it was about to start *Pending*: the server hears of neither. Two automations
mark such runs Crashed, and a third starts ``resume/run`` for a crashed training. A run that
waits for a person sends no heartbeats, so flows that suspend themselves are left out.

Events are best effort: what they miss, ``resume-overdue`` finds. ``SILENT_SECONDS`` are three
of the heartbeats that workers send every 30 seconds (``PREFECT_FLOWS_HEARTBEAT_FREQUENCY``).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from prefect import get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import (
    Automation,
    AutomationCore,
    EventTrigger,
    Posture,
    ResourceSpecificationDict,
)
from prefect.events.schemas.events import ResourceSpecification

from tasks.resuming import MAX_ATTEMPTS, PENDING_SECONDS, RESUMED, SILENT_SECONDS, WATCHED

log = logging.getLogger(__name__)

OURS = "slm: "
"""Every automation of ours has a name that begins so; no other is touched."""

RESUME = "resume/run"
PENDING_NAMES = ("Pending", "Submitting", "InfrastructurePending")
"""Names of the states in which a run is about to begin."""


def crash_automations() -> tuple[AutomationCore, ...]:
    """Return the automations that end dead runs and resume crashed trainings.

    Raises:
        ObjectNotFound: ``resume/run`` is not deployed yet.
    """
    with get_client(sync_client=True) as client:
        resume = client.read_deployment_by_name(RESUME)
    return (
        _crash_when_silent(
            "mark silent runs crashed",
            {"prefect.flow-run.heartbeat"},
            SILENT_SECONDS,
            "no heartbeat",
        ),
        _crash_when_silent(
            "mark runs that never began crashed",
            # A worker takes a run through all three, and may die after each.
            {f"prefect.flow-run.{name}" for name in PENDING_NAMES},
            PENDING_SECONDS,
            "pending and no sign of life",
        ),
        AutomationCore(
            name=OURS + "resume crashed trainings",
            description=f"Starts {RESUME}, which gives up after {MAX_ATTEMPTS} attempts.",
            trigger=EventTrigger(
                expect={"prefect.flow-run.Crashed"},
                match=_RUNS,
                match_related=_of_flows(RESUMED),
                for_each={"prefect.resource.id"},
                posture=Posture.Reactive,
                threshold=1,
                within=timedelta(0),
            ),
            actions=[
                RunDeployment(
                    source="selected",
                    deployment_id=resume.id,
                    # Without the filter the action fails: an id is not JSON.
                    parameters={
                        "run_id": "{{ flow_run.id | string }}",
                        "max_attempts": MAX_ATTEMPTS,
                    },
                    job_variables=None,
                )
            ],
        ),
    )


def reconcile(automations: Iterable[AutomationCore]) -> None:
    """Make the server's automations of ours these ones: by name, as often as you like.

    One that stands as declared is left alone, because an update makes it forget what it has
    counted. One that a person has switched off stays off.

    Raises:
        ValueError: a name does not begin with ``OURS``, or is given twice.
    """
    wanted = list(automations)
    names = [one.name for one in wanted]
    if len(set(names)) < len(names) or not all(name.startswith(OURS) for name in names):
        raise ValueError(f"automations need names of their own that begin with {OURS!r}: {names}")
    with get_client(sync_client=True) as client:
        found = [one for one in client.read_automations() if one.name.startswith(OURS)]
        known: dict[str, Automation] = {}
        for one in found:
            if one.name not in names or one.name in known:
                client.delete_automation(one.id)
                log.info("automation removed name=%r", one.name)
            else:
                known[one.name] = one
        for one in wanted:
            old = known.get(one.name)
            if old is None:
                client.create_automation(one)
                log.info("automation created name=%r", one.name)
                continue
            # With every field set: an update sends only those that are.
            one = AutomationCore.model_validate(_content(one) | {"enabled": old.enabled})
            if _content(one) != _content(old):
                client.update_automation(old.id, one)
                log.info("automation updated name=%r", one.name)


_RUNS = ResourceSpecification.model_validate({"prefect.resource.id": "prefect.flow-run.*"})


def _of_flows(
    names: tuple[str, ...],
) -> list[ResourceSpecification | ResourceSpecificationDict]:
    """Match runs of any deployment of these flows; both must be among the related.

    By the flow's name: heartbeats carry no deployment name, and would match nothing, silently.
    Who begins a run in a terminal watches over it, and has stopped it when it stops.
    """
    flow = {"prefect.resource.role": "flow", "prefect.resource.name": list(names)}
    deployed = {"prefect.resource.role": "deployment"}
    return [ResourceSpecification.model_validate(one) for one in (flow, deployed)]


def _crash_when_silent(name: str, after: set[str], seconds: int, why: str) -> AutomationCore:
    return AutomationCore(
        name=OURS + name,
        description=f"After {seconds} s without any event of the run.",
        trigger=EventTrigger(
            after=after,
            expect={"prefect.flow-run.*"},
            match=_RUNS,
            match_related=_of_flows(WATCHED),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=seconds),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                name="Crashed",
                message=f"{why} for {seconds} s",
                force=False,
            )
        ],
    )


def _content(automation: AutomationCore) -> dict[str, Any]:
    """Return what was declared, without what the server added."""
    return AutomationCore.model_validate(automation.model_dump()).model_dump(
        exclude={"owner_resource"}
    )
