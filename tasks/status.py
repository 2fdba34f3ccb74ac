"""The state of the service: what the Prefect server knows, and what everything else says."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from itertools import takewhile
from uuid import UUID

from prefect import get_client
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterType,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterParentTaskRunId,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
    WorkQueueFilter,
    WorkQueueFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType, WorkerStatus
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.settings import PREFECT_UI_URL

from slm_core.records import utc_now
from slm_core.status import (
    FlowRunNow,
    Look,
    Night,
    Operations,
    PoolNow,
    Routine,
    Status,
    StatusFiles,
    Waiting,
    concerns,
    gather,
    headline,
    to_markdown,
)
from tasks._artifacts import showing
from tasks._wiring import current_settings, opened_store, step

log = logging.getLogger(__name__)

NIGHTLY = "retrain/nightly"
ROUTINES = ("ingest/spool", "settle/routes", "resume-overdue/now")
"""Deployments that keep the service going: when one fails, nothing else says so."""

_MOST = 100
"""Runs of one kind that are looked at."""
_NIGHTS = 7
_RED_LOOKED_FOR = 5
_AT_WORK = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]
_SHOWN = 200
"""Characters of a message; its run has all of it."""


@step("ask the Prefect server")
def ask_prefect() -> Operations:
    """Return what only the server knows: what runs, how the nights went, who waits for a person."""
    with get_client(sync_client=True) as client:
        nights, since = _nights(client)
        return Operations(
            running=_running(client),
            nights=nights,
            nightly_since=since,
            routines=_routines(client),
            waiting=_waiting(client),
            pools=_pools(client),
            dashboard=PREFECT_UI_URL.value(),
        )


@step("gather the status")
def gather_status(operations: Operations) -> Status:
    """Look at the store and this machine, and write ``status.json`` and ``status.html``."""
    settings = current_settings()
    look = Look(
        home=settings.home,
        open_store=opened_store,
        threshold=settings.retrain_threshold,
        gpu_report=settings.gpu_report,
        gpu_ledger=settings.gpu_ledger,
    )
    status = gather(look, operations)
    try:
        StatusFiles(settings.home).write(status)
    except OSError as error:
        # The full disk is itself what is to be told of.
        log.warning("status not written home=%s error=%s", settings.home, error)
    return status


def show_in_dashboard(status: Status) -> None:
    """Publish the status as an artifact that names the page."""
    page = StatusFiles(current_settings().home).page
    text = f"{to_markdown(status)}\nThe same as a page on {status.host}: `{page}`\n"
    with showing("status"):
        create_markdown_artifact(text, key="status", description=headline(concerns(status)))


def _running(client: SyncPrefectClient) -> tuple[FlowRunNow, ...]:
    found = [
        run
        for run in _in_states(client, _AT_WORK)
        if str(run.id) != str(flow_run.id) and run.state is not None
    ]
    flows = _flow_names(client, found)
    progress = _progress(client, [run.id for run in found])
    return tuple(
        FlowRunNow(
            id=str(run.id),
            name=run.name,
            flow=flows[run.flow_id],
            state=run.state.name or run.state.type.value if run.state else "",
            since=run.start_time,
            progress=progress.get(run.id, ""),
            where=(run.infrastructure_pid or "").partition(":")[0],
        )
        for run in found
    )


def _waiting(client: SyncPrefectClient) -> tuple[Waiting, ...]:
    found = _in_states(client, [StateType.PAUSED])
    flows = _flow_names(client, found)
    return tuple(
        Waiting(
            id=str(run.id),
            name=run.name,
            flow=flows[run.flow_id],
            since=run.state.timestamp,
            until=run.state.state_details.pause_timeout,
        )
        for run in found
        if run.state is not None
    )


def _in_states(client: SyncPrefectClient, types: list[StateType]) -> list[FlowRun]:
    """Return the runs in those states, but not the parts of other runs."""
    wanted = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=types)),
        parent_task_run_id=FlowRunFilterParentTaskRunId(is_null_=True),
    )
    return client.read_flow_runs(
        flow_run_filter=wanted, limit=_MOST, sort=FlowRunSort.START_TIME_DESC
    )


def _flow_names(client: SyncPrefectClient, runs: list[FlowRun]) -> dict[UUID, str]:
    return {flow_id: client.read_flow(flow_id).name for flow_id in {run.flow_id for run in runs}}


def _progress(client: SyncPrefectClient, runs: list[UUID]) -> dict[UUID, str]:
    """Return what the newest progress of each run says."""
    if not runs:
        return {}
    wanted = ArtifactFilter(
        type=ArtifactFilterType(any_=["progress"]), flow_run_id=ArtifactFilterFlowRunId(any_=runs)
    )
    found = client.read_artifacts(artifact_filter=wanted)
    return {
        one.flow_run_id: one.description or f"{one.data} %"
        for one in sorted(found, key=lambda one: one.updated or _LONG_AGO)
        if one.flow_run_id is not None
    }


def _nights(client: SyncPrefectClient) -> tuple[tuple[Night, ...], datetime | None]:
    """Return the last nights, newest first, and since when there should be some."""
    try:
        deployment = client.read_deployment_by_name(NIGHTLY)
    except ObjectNotFound:
        return (), None
    # One that is due and waits for its place is a night too.
    due = FlowRunFilterExpectedStartTime.model_validate({"before_": utc_now()})
    which = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[deployment.id]), expected_start_time=due
    )
    nights = _newest(client, which, _NIGHTS)
    active = not deployment.paused and any(one.active for one in deployment.schedules)
    return nights, deployment.created if active else None


def _routines(client: SyncPrefectClient) -> tuple[Routine, ...]:
    """Return how the last runs of each routine that is deployed went."""
    ended = [StateType.COMPLETED, StateType.FAILED, StateType.CRASHED]
    found: list[Routine] = []
    for name in ROUTINES:
        try:
            deployment = client.read_deployment_by_name(name)
        except ObjectNotFound:
            continue
        which = FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[deployment.id]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=ended)),
        )
        runs = _newest(client, which, _RED_LOOKED_FOR)
        if not runs:
            continue
        red = list(takewhile(lambda run: not run.green, runs))
        last = runs[0]
        found.append(
            Routine(
                deployment=name,
                red=len(red),
                at=last.at,
                outcome=last.outcome,
                message=last.message,
            )
        )
    return tuple(found)


def _newest(client: SyncPrefectClient, which: FlowRunFilter, most: int) -> tuple[Night, ...]:
    """Return how runs of one deployment went, newest first."""
    found = client.read_flow_runs(
        flow_run_filter=which, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=most
    )
    return tuple(
        Night(
            at=run.expected_start_time or run.start_time or _LONG_AGO,
            outcome=run.state.name or run.state.type.value,
            green=run.state.is_completed() if run.state.is_final() else None,
            run=run.name,
            message=(run.state.message or "")[:_SHOWN],
        )
        for run in found
        if run.state is not None
    )


def _pools(client: SyncPrefectClient) -> tuple[PoolNow, ...]:
    late = FlowRunFilter(state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Late"])))
    pools: list[PoolNow] = []
    for pool in client.read_work_pools():
        workers = client.read_workers_for_work_pool(pool.name)
        this = WorkPoolFilter(name=WorkPoolFilterName(any_=[pool.name]))
        queues = [q.name for q in client.read_work_queues(work_pool_name=pool.name) if q.is_paused]
        pools.append(
            PoolNow(
                name=pool.name,
                online=sum(worker.status == WorkerStatus.ONLINE for worker in workers),
                late=client.count_flow_runs(flow_run_filter=late, work_pool_filter=this),
                paused=bool(pool.is_paused),
                paused_queues=tuple(
                    name
                    for name in queues
                    if client.count_flow_runs(
                        flow_run_filter=late,
                        work_pool_filter=this,
                        work_queue_filter=WorkQueueFilter(name=WorkQueueFilterName(any_=[name])),
                    )
                ),
            )
        )
    return tuple(pools)


_LONG_AGO = datetime.fromtimestamp(0, UTC)
