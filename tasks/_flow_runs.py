"""What the Prefect server knows of our runs, and how one of them is retried.

Retrying keeps the flow run: same id, parameters and page in the dashboard, so the same run
folder and the same owner of the claim. The button *Retry* does the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from uuid import UUID

from prefect import get_client
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events.filters import (
    EventFilter,
    EventNameFilter,
    EventOccurredFilter,
    EventOrder,
    EventResourceFilter,
)
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed, Scheduled

from slm_core.errors import TrainingError
from slm_core.records import utc_now

AWAITING_RETRY = "AwaitingRetry"
ENDED = frozenset({StateType.CRASHED, StateType.FAILED, StateType.CANCELLED})
"""States that a run can be retried from."""
_LISTED = 200


def find(flow_run_id: str | None) -> FlowRun | None:
    """Return a flow run; None for an id that is not Prefect's, or that this server never knew."""
    if flow_run_id is None:
        return None
    try:
        known = UUID(flow_run_id)
    except ValueError:
        return None
    with get_client(sync_client=True) as client:
        try:
            return client.read_flow_run(known)
        except ObjectNotFound:
            return None


def flow_of(run: FlowRun) -> str:
    """Return the name of a run's flow."""
    with get_client(sync_client=True) as client:
        return client.read_flow(run.flow_id).name


def state_of(run: FlowRun) -> StateType:
    """Return the state of a run; one that has none yet is about to be scheduled."""
    return StateType.SCHEDULED if run.state is None else run.state.type


def seconds_in_state(run: FlowRun) -> float:
    """Return for how long a run has been in its state."""
    since: datetime = utc_now() if run.state is None else run.state.timestamp
    return max(0.0, (utc_now() - since).total_seconds())


def attempts(run: FlowRun) -> int:
    """Return how often a run was begun, those times included when it died before its first line."""
    with get_client(sync_client=True) as client:
        states = client.read_flow_run_states(run.id)
    return max(run.run_count, 1 + sum(state.name == AWAITING_RETRY for state in states))


def recent(flows: Iterable[str], states: Iterable[StateType], within: timedelta) -> list[FlowRun]:
    """Return the runs of deployments of ``flows`` that are in one of ``states``.

    Of those that ended only what ended ``within`` that time: it is history later. One that is
    still shown at work may have been so for days.
    """
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(
            flow_filter=FlowFilter.model_validate({"name": {"any_": list(flows)}}),
            flow_run_filter=FlowRunFilter.model_validate(
                {
                    "state": {"type": {"any_": [state.value for state in states]}},
                    "deployment_id": {"is_null_": False},
                }
            ),
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
            limit=_LISTED,
        )
    return [
        run
        for run in found
        if state_of(run) not in ENDED or seconds_in_state(run) < within.total_seconds()
    ]


def seconds_since_heartbeat(run: FlowRun) -> float | None:
    """Return for how long a run has been silent since it began; None when it never beat."""
    begun: datetime = utc_now() if run.state is None else run.state.timestamp
    of_run = EventResourceFilter(id=[f"prefect.flow-run.{run.id}"])
    wanted = EventFilter(
        occurred=EventOccurredFilter.model_validate({"since": begun}),
        event=EventNameFilter(name=["prefect.flow-run.heartbeat"]),
        resource=of_run,
        order=EventOrder.DESC,
    )
    with get_client(sync_client=True) as client:
        newest = client.read_events(wanted, limit=1).events
    return (utc_now() - newest[0].occurred).total_seconds() if newest else None


def retry(run: FlowRun) -> None:
    """Let a worker begin an ended run again, under its own id.

    Raises:
        TrainingError: the server refused.
    """
    with get_client(sync_client=True) as client:
        # Not forced: the server's own rules hold, as for the button.
        answer = client.set_flow_run_state(run.id, Scheduled(name=AWAITING_RETRY))
    if answer.status is not SetStateStatus.ACCEPT:
        raise TrainingError(
            f"Prefect did not let run {run.name} be retried: {answer.status.value}.",
            details=str(answer.details),
        )


def bury(run: FlowRun, why: str) -> None:
    """Mark a run Crashed whose process is gone: it would keep its place in the queue for good."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run.id, Crashed(message=why), force=True)


def is_cancelled(flow_run_id: str | None) -> bool:
    """Whether a person cancelled the run; False when the server cannot be asked."""
    try:
        run = find(flow_run_id)
    except Exception:
        # Asked while a signal ends this process. Who keeps a claim too long loses nothing.
        return False
    return run is not None and state_of(run) in (StateType.CANCELLING, StateType.CANCELLED)
