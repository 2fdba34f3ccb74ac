"""What is known at one moment. None always means that it is not known, never that all is well."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from slm_core.records import Claim, Health, Record, RunState, Stage, Track, utc_now


class RouteNow(Record):
    """An adapter on the route of an agent."""

    agent_name: str
    track: Track
    adapter_id: str
    stage: Stage
    since: datetime
    share: float | None = None
    """Part of the calls that it answers, 0 to 1; None where the route does not say."""


class RunNow(Record):
    """A training or retraining of this machine that is at work, or that came to rest unfinished."""

    run_id: str
    flow: str
    state: RunState
    at_work: bool
    host: str
    moved_at: datetime
    """When it last began, logged a step or changed its state."""
    why: str = ""
    cancelled: bool = False
    """A person stopped it."""
    claim_id: str | None = None
    step: int | None = None
    """Of the part that moved last; None before its first step."""
    total_steps: int | None = None
    loss: float | None = None
    eta_seconds: float | None = None


class GpuNow(Record):
    """The worst that the last health check said of one GPU."""

    name: str
    health: Health
    message: str = ""
    """Empty when all is well."""


class GpusNow(Record):
    """The last health check of this machine's GPUs."""

    checked_at: datetime
    health: Health
    gpus: tuple[GpuNow, ...]
    machine: str = ""
    """What was found wrong with the machine as a whole."""


class Disk(Record):
    """The disk that holds ``SLM_HOME``."""

    path: str
    free_bytes: int
    total_bytes: int


class Waiting(Record):
    """A run that waits for a person."""

    id: str
    name: str
    flow: str
    since: datetime
    until: datetime | None = None
    """When it ends by itself, with what its form says of silence."""


class Stored(Record):
    """What the store says."""

    calls: int
    waiting: int
    """Usable calls that no claim holds yet."""
    routes: tuple[RouteNow, ...] = ()
    """Those that are not retired."""
    claims: tuple[Claim, ...] = ()
    """Those that are not done."""
    waiting_promotions: tuple[Waiting, ...] = ()


class FlowRunNow(Record):
    """A run that the Prefect server counts as running, or about to."""

    id: str
    name: str
    flow: str
    state: str
    since: datetime | None = None
    progress: str = ""
    """What its newest progress artifact says."""
    where: str = ""
    """Worker or host."""


class Night(Record):
    """One run of a deployment that has a schedule, most often the nightly retraining."""

    at: datetime
    """When it was due."""
    outcome: str
    """The name of the run's state, such as ``Completed``, ``Skipped`` or ``Failed``."""
    green: bool | None
    """None while it runs."""
    run: str
    """Name of the run."""
    message: str = ""


class Routine(Record):
    """How the last runs of a deployment went that keeps the service going every few minutes."""

    deployment: str
    red: int
    """How many of its last runs in a row ended red."""
    at: datetime
    """When the newest of those that ended was due."""
    outcome: str
    message: str = ""


class PoolNow(Record):
    """A work pool and who serves it."""

    name: str
    online: int
    """Workers that reported lately."""
    late: int
    """Runs that should have begun."""
    paused: bool = False
    paused_queues: tuple[str, ...] = ()
    """Those of its queues that are paused and have late runs."""


class Operations(Record):
    """What the Prefect server knows."""

    at: datetime = Field(default_factory=utc_now)
    running: tuple[FlowRunNow, ...] = ()
    nights: tuple[Night, ...] = ()
    """Newest first."""
    nightly_since: datetime | None = None
    """Since when there should be nights; None when none are scheduled or the schedule rests."""
    routines: tuple[Routine, ...] = ()
    waiting: tuple[Waiting, ...] = ()
    pools: tuple[PoolNow, ...] = ()
    dashboard: str | None = None
    """Address of the dashboard."""


class Status(Record):
    """Everything, at one moment."""

    at: datetime = Field(default_factory=utc_now)
    host: str
    threshold: int
    """Usable calls that make a claim."""
    store: Stored | None
    """None when the store does not answer."""
    store_name: str
    """Its address without the password."""
    store_problem: str = ""
    runs: tuple[RunNow, ...] = ()
    gpus: GpusNow | None = None
    reboot_due: str = ""
    """Why this machine must be restarted before it trains again."""
    disk: Disk
    operations: Operations | None = None

    @property
    def waiting(self) -> tuple[Waiting, ...] | None:
        """Who waits for a person, by the store and by the server; None when neither answers."""
        if self.store is None and self.operations is None:
            return None
        asked = self.store.waiting_promotions if self.store else ()
        known = {one.id for one in asked}
        others = self.operations.waiting if self.operations else ()
        return (*asked, *(one for one in others if one.id not in known))

    @property
    def missing(self) -> int | None:
        """Usable calls until the next claim; None when the store does not answer."""
        return None if self.store is None else max(0, self.threshold - self.store.waiting)
