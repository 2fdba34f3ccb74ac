"""``python -m tasks.deploy``: make a Prefect server know our pools, queues and deployments.

Run again, it changes only what differs. What was paused on call stays paused. Needs
``PREFECT_API_URL``, and ``PREFECT_API_AUTH_STRING`` where the server has a login.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

import httpx
import typer
import yaml
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import get_current_settings
from pydantic import BaseModel, ConfigDict

from slm_core import __version__
from slm_core.errors import ConfigError, SlmError, StackError
from slm_core.settings import Settings
from tasks._automations import crash_automations, reconcile
from tasks._notifications import forget_address, notification_automations

PoolType = Literal["process", "docker", "kubernetes"]
Say = Callable[[str], None]


class Queue(BaseModel):
    """One queue of a pool."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    priority: int
    """1 is looked at first."""
    description: str


class Pool(BaseModel):
    """One work pool, as ``deployments/pools.yaml`` declares it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    description: str
    concurrency_limit: int | None
    """Runs at once over all its workers; None means any number."""
    queues: dict[str, Queue]
    templates: dict[PoolType, dict[str, Any]] = {}
    """Type of pool to defaults of job variables in which this pool differs from others."""


def read_pools(project: Path) -> dict[str, Pool]:
    """Return the pools that the project declares, by name."""
    declared = yaml.safe_load((project / "deployments" / "pools.yaml").read_text())
    return {name: Pool.model_validate(pool) for name, pool in declared.items()}


def job_template(project: Path, pool: Pool, kind: PoolType) -> dict[str, Any]:
    """Return the base job template of ``pool`` when it is of type ``kind``."""
    template = json.loads((project / "deployments" / "pools" / f"{kind}.json").read_text())
    for name, default in pool.templates.get(kind, {}).items():
        template["variables"]["properties"][name]["default"] = default
    return template


def deploy(project: Path, types: Mapping[str, PoolType], say: Say, *, notify: bool = True) -> None:
    """Create or update pools, queues, deployments and automations of the project.

    Args:
        project: folder with ``prefect.yaml`` and ``deployments/``.
        types: pool to the type that a new one gets; a pool that is there keeps its own.
        say: told what was done, a line at a time.
        notify: post news to ``SLM_NOTIFY_URL``, or where it was posted before; False ends that.

    Raises:
        ConfigError: no server is named, or a pool is of another type than asked for.
        StackError: the server does not answer, refuses the login or refuses what it was sent.
    """
    url = get_current_settings().api.url
    if url is None:
        raise ConfigError(
            "PREFECT_API_URL is not set, so there is no server to deploy to. `make up` starts "
            "one on this machine; then run `source .slm/stack/environment.sh`."
        )
    try:
        asyncio.run(_ensure_pools(project, types, say))
        _deploy_flows(project, say)
        _reconcile_automations(say, notify)
    except httpx.TransportError as error:
        raise StackError(
            f"The Prefect server at {url} does not answer ({type(error).__name__}). Start it, or "
            "correct PREFECT_API_URL."
        ) from error
    except PrefectHTTPStatusError as error:
        raise _refused(url, error.response) from error


def _refused(url: str, response: httpx.Response) -> StackError:
    if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return StackError(
            f"The Prefect server at {url} refuses the login ({response.status_code}). Set "
            "PREFECT_API_AUTH_STRING to the user:password that it was started with."
        )
    return StackError(
        f"The Prefect server at {url} refused {response.request.url.path}: "
        f"{response.status_code} {response.text[:500]}"
    )


async def _ensure_pools(project: Path, types: Mapping[str, PoolType], say: Say) -> None:
    async with get_client() as client:
        for name, pool in read_pools(project).items():
            await _ensure_pool(client, project, name, pool, types.get(name), say)
            for queue, wanted in pool.queues.items():
                await _ensure_queue(client, name, queue, wanted, say)


async def _ensure_pool(
    client: PrefectClient, project: Path, name: str, pool: Pool, asked: PoolType | None, say: Say
) -> None:
    try:
        found = await client.read_work_pool(name)
    except ObjectNotFound:
        kind: PoolType = asked or "process"
        await client.create_work_pool(
            WorkPoolCreate(
                name=name,
                type=kind,
                description=pool.description,
                concurrency_limit=pool.concurrency_limit,
                base_job_template=job_template(project, pool, kind),
            )
        )
        say(f"pool {name}: created, type {kind}")
        return
    if asked is not None and found.type != asked:
        raise ConfigError(
            f"Pool {name} is of type {found.type}, and a pool's type cannot be changed. Let its "
            f"runs end, stop its workers, run `prefect work-pool delete {name}`, then this again.",
        )
    if found.type not in get_args(PoolType):
        raise ConfigError(
            f"Pool {name} is of type {found.type}, for which deployments/pools/ has no template. "
            f"Types that have one: {', '.join(get_args(PoolType))}."
        )
    template = job_template(project, pool, cast("PoolType", found.type))
    same = (found.description, found.concurrency_limit, found.base_job_template) == (
        pool.description,
        pool.concurrency_limit,
        template,
    )
    if not same:
        await client.update_work_pool(
            name,
            WorkPoolUpdate(
                description=pool.description,
                concurrency_limit=pool.concurrency_limit,
                base_job_template=template,
            ),
        )
    paused = ", paused" if found.is_paused else ""
    say(f"pool {name}: {'unchanged' if same else 'updated'}, type {found.type}{paused}")


async def _ensure_queue(
    client: PrefectClient, pool: str, name: str, wanted: Queue, say: Say
) -> None:
    try:
        found = await client.read_work_queue_by_name(name, work_pool_name=pool)
    except ObjectNotFound:
        await client.create_work_queue(
            name, wanted.description, priority=wanted.priority, work_pool_name=pool
        )
        say(f"queue {pool}/{name}: created, priority {wanted.priority}")
        return
    same = (found.priority, found.description) == (wanted.priority, wanted.description)
    if not same:
        await client.update_work_queue(
            found.id, priority=wanted.priority, description=wanted.description
        )
    paused = ", paused" if found.is_paused else ""
    say(f"queue {pool}/{name}: {'unchanged' if same else 'updated'}{paused}")


def _deploy_flows(project: Path, say: Say) -> None:
    """Register every deployment of prefect.yaml, without a question."""
    result = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
        cwd=project,
        env=_environment_to_deploy_in(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        raise StackError(f"prefect deploy failed:\n{result.stdout}{result.stderr}")
    count = len(yaml.safe_load((project / "prefect.yaml").read_text())["deployments"])
    say(f"deployments: {count} registered, version {__version__}")


def _environment_to_deploy_in() -> dict[str, str]:
    """Return an environment in which ``prefect deploy`` reaches the server as this process does."""
    ours = Settings.from_env().child_environment() | {"CODE_VERSION": __version__}
    # The pull step shall read it where a worker runs: set here, this path would be baked in.
    ours.pop("SLM_REPO", None)
    # Certificates, headers and logins may come from a profile or a prefect.toml elsewhere.
    theirs = get_current_settings().to_environment_variables(exclude_unset=True)
    return ours | theirs | {"DO_NOT_TRACK": "1"}


def _reconcile_automations(say: Say, notify: bool) -> None:
    """Make the automations of the server those that ``tasks`` declares."""
    url = Settings.from_env().notify_url
    try:
        crash = crash_automations()
    except ObjectNotFound:
        say("automations: left as they are, for resume/run is not deployed")
        return
    news = notification_automations(url) if notify else ()
    reconcile([*crash, *news])
    say(f"automations: {len(crash) + len(news)} in place")
    if not notify:
        forget_address()
        say("notifications: none, as asked")
    elif not news:
        say("notifications: none, for SLM_NOTIFY_URL is not set")
    elif url is None:
        say("notifications: posted where they were; SLM_NOTIFY_URL is not set here")
    else:
        say("notifications: posted to SLM_NOTIFY_URL")


def _main(
    gpu: Annotated[PoolType | None, typer.Option(help="Type of a new pool gpu.")] = None,
    cpu: Annotated[PoolType | None, typer.Option(help="Type of a new pool cpu.")] = None,
    notify: Annotated[
        bool,
        typer.Option(help="Post news to SLM_NOTIFY_URL, or where it was posted; or to nobody."),
    ] = True,
) -> None:
    """Make the Prefect server of PREFECT_API_URL know pools, queues and deployments."""
    types: dict[str, PoolType] = {}
    if gpu is not None:
        types["gpu"] = gpu
    if cpu is not None:
        types["cpu"] = cpu
    deploy(Path.cwd(), types, typer.echo, notify=notify)


if __name__ == "__main__":
    try:
        typer.run(_main)
    except SlmError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        sys.exit(1)
