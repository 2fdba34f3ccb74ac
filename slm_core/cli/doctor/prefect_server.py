"""Checks of the Prefect server: does it answer, schedule, and hold what we deployed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from slm_core.cli.doctor.findings import Answer, failed, passed, unknown, warned
from slm_core.cli.doctor.machine import PROJECT
from slm_core.cli.prefect_client import PrefectClient, no_server, prefect_client
from slm_core.errors import PrefectUnavailable
from slm_core.settings import Settings

DEPLOY = "make deploy"
CRASH_AUTOMATIONS = (
    "slm: mark silent runs crashed",
    "slm: mark runs that never began crashed",
    "slm: resume crashed trainings",
)
"""Made by `make deploy`; without them a run that dies with its machine is never noticed."""
NOTIFICATIONS = "slm: notify, "
"""How the names of the automations begin that tell people."""
_SECONDS = 3.0
_DOWN = "see RUNBOOK.md#prefect-down"
_SETTLED = timedelta(minutes=2)
"""A deployment that was just made may have no scheduled runs yet."""


def api(settings: Settings) -> Answer:
    """Does the server answer, of the same version as the library here, behind a login?"""
    if settings.prefect_api_url is None:
        return unknown(no_server(settings))
    try:
        with _client(settings) as client:
            version = client.get("/admin/version")
            _ask_database(client)
    except PrefectUnavailable as error:
        return failed(str(error), "make status", _DOWN)
    here = _version("prefect")
    seen = f"Prefect {version} answers at {settings.prefect_api_url}"
    if here is not None and here != version:
        return failed(
            f"{seen}; here is {here}. Workers and server must be of one version.", "make -B install"
        )
    host = urlsplit(settings.prefect_api_url).hostname or ""
    if settings.prefect_api_auth_string is None and host not in ("127.0.0.1", "localhost", "::1"):
        return warned(
            f"{seen}, without a login: whoever reaches it can run code on the workers.",
            "set PREFECT_SERVER_API_AUTH_STRING on the server, PREFECT_API_AUTH_STRING elsewhere",
        )
    login = "with a login" if settings.prefect_api_auth_string else "on loopback, without a login"
    return passed(f"{seen}, {login}.")


def _ask_database(client: PrefectClient) -> None:
    """Ask for what the server says only with its database behind it.

    Raises:
        PrefectUnavailable: the database does not answer; most of what people ask for fails.
    """
    try:
        client.get("/ready")
    except PrefectUnavailable as error:
        if error.context.get("status") != httpx.codes.SERVICE_UNAVAILABLE:
            raise
        raise PrefectUnavailable(
            f"Prefect at {client.api_url} answers, its database does not."
        ) from error


def server_settings(settings: Settings) -> Answer:
    """Are leases kept over a restart?"""
    if settings.prefect_api_url is None:
        return unknown(no_server(settings))
    with _client(settings) as client:
        server = client.get("/admin/settings")["server"]
    storage = str(_dig(server, "concurrency", "lease_storage") or "")
    if not storage:
        return unknown("The server does not tell how it keeps leases.")
    if storage.endswith("memory"):
        return warned(
            "Leases are kept in memory: after a restart a dead run's slot is lost.",
            "set PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE as deployments/README.md says",
        )
    return passed(f"Leases are kept by {storage.removeprefix('prefect.server.concurrency.')}.")


def telemetry(settings: Settings) -> Answer:
    """Is telemetry off, on the server and in this shell?"""
    on = [] if settings.do_not_track else ["this shell (DO_NOT_TRACK is not 1)"]
    asked = "this shell only; no server is named"
    if settings.prefect_api_url is not None:
        with _client(settings) as client:
            server = client.get("/admin/settings")["server"]
        asked = "server and shell"
        if server.get("analytics_enabled") is not False:
            on.insert(0, "the server (PREFECT_SERVER_ANALYTICS_ENABLED is not false)")
    if on:
        return warned(
            f"Telemetry is on in {' and '.join(on)}.",
            "export DO_NOT_TRACK=1",
            "start the server with PREFECT_SERVER_ANALYTICS_ENABLED=false",
        )
    return passed(f"Telemetry is off: {asked}.")


def deployments(settings: Settings) -> Answer:
    """Are all deployments of prefect.yaml registered, and none with a path baked in?"""
    if settings.prefect_api_url is None:
        return unknown(no_server(settings))
    file = (settings.repo or PROJECT) / "prefect.yaml"
    with _client(settings) as client:
        found = client.every("/deployments/filter")
    if not file.is_file():
        return unknown(
            f"{len(found)} deployments; no prefect.yaml here says which there should be."
        )
    wanted = _declared(file)
    there = {(one["name"], one.get("entrypoint")) for one in found}
    missing = sorted(f"{name} ({entrypoint})" for name, entrypoint in wanted - there)
    if missing:
        return failed(
            f"{len(missing)} of {len(wanted)} deployments are missing: {', '.join(missing)}.",
            DEPLOY,
        )
    baked = sorted(
        one["name"]
        for one in found
        if (one["name"], one.get("entrypoint")) in wanted
        and "SLM_REPO" not in str(one.get("pull_steps"))
    )
    if baked:
        return warned(
            f"{len(baked)} deployments hold the deployer's path: {', '.join(baked)}.",
            f"env -u SLM_REPO {DEPLOY}",
        )
    paused = sorted(one["name"] for one in found if one.get("paused"))
    idle = sorted(one["name"] for one in found if one["schedules"] and not any(_active(one)))
    if paused or idle:
        return warned(
            f"All {len(wanted)} are there; paused: {', '.join(dict.fromkeys(paused + idle))}.",
            "prefect deployment schedule ls FLOW/NAME, then resume",
        )
    return passed(f"All {len(wanted)} deployments are there.")


def workers(settings: Settings) -> Answer:
    """Does a worker look at every queue that a deployment uses?"""
    if settings.prefect_api_url is None:
        return unknown(no_server(settings))
    with _client(settings) as client:
        used = {
            (one["work_pool_name"], one["work_queue_name"])
            for one in client.every("/deployments/filter")
            if one.get("work_pool_name")
        }
        problems: list[str] = []
        counts: list[str] = []
        for pool in sorted({name for name, _ in used}):
            online = _online(client, pool)
            counts.append(f"{pool}: {online} online")
            if not online:
                problems.append(f"no worker of pool {pool} is online")
            if client.get(f"/work_pools/{pool}")["is_paused"]:
                problems.append(f"pool {pool} is paused")
            for queue in client.every(f"/work_pools/{pool}/queues/filter"):
                if (pool, queue["name"]) not in used:
                    continue
                if queue["is_paused"]:
                    problems.append(f"queue {pool}/{queue['name']} is paused")
                elif queue["status"] != "READY":
                    problems.append(f"nobody looks at queue {pool}/{queue['name']}")
    if not used:
        return unknown("No deployment names a work pool.", DEPLOY)
    mend = ("prefect work-pool ls", "make up", "see RUNBOOK.md#no-worker")
    if problems:
        return failed(f"{'; '.join(problems)}.", *mend)
    return passed(f"Workers: {', '.join(counts)}; {len(used)} queues are looked at.")


def automations(settings: Settings) -> Answer:
    """Are the automations that find silent runs and notify people there, and on?"""
    if settings.prefect_api_url is None:
        return unknown(no_server(settings))
    with _client(settings) as client:
        found = {one["name"]: one["enabled"] for one in client.every("/automations/filter")}
    missing = sorted(set(CRASH_AUTOMATIONS) - set(found))
    if missing:
        return failed(
            f"{len(missing)} of {len(CRASH_AUTOMATIONS)} that end dead runs are missing: "
            f"{', '.join(missing)}. A run that dies with its machine stays Running.",
            DEPLOY,
        )
    off = sorted(name for name in found if name.startswith("slm: ") and not found[name])
    if off:
        return warned(
            f"{len(off)} of {len(found)} are off: {', '.join(off)}.",
            *(f"prefect automation resume '{name}'" for name in off),
        )
    if not any(name.startswith(NOTIFICATIONS) for name in found):
        return warned(
            f"{len(found)} automations, ours all on, but none tells anybody: no news is sent.",
            f"SLM_NOTIFY_URL=ADDRESS {DEPLOY}",
        )
    return passed(f"{len(found)} automations, ours all on: {', '.join(sorted(found))}.")


def scheduler(settings: Settings) -> Answer:
    """Does the server make runs of schedules, and does somebody take them up?"""
    if settings.prefect_api_url is None:
        return unknown(no_server(settings))
    settled = datetime.now(UTC) - _SETTLED
    with _client(settings) as client:
        scheduled = [
            one
            for one in client.every("/deployments/filter")
            if any(_active(one)) and not one.get("paused")
        ]
        due = [one for one in scheduled if datetime.fromisoformat(one["created"]) < settled]
        ahead = {"state": {"type": {"any_": ["SCHEDULED"]}}}
        have = {
            one["deployment_id"] for one in client.every("/flow_runs/filter", {"flow_runs": ahead})
        }
        late = client.every(
            "/flow_runs/filter", {"flow_runs": {"state": {"name": {"any_": ["Late"]}}}}
        )
        moving = _moving(client, {one.get("work_pool_name") for one in late})
    none = sorted(one["name"] for one in due if one["id"] not in have)
    if none:
        return failed(
            f"No run is scheduled for {', '.join(none)}: the scheduler does not work.",
            "pip list | grep -i sqlalchemy  (2.1 stops it)",
            "make down; make up",
            _DOWN,
        )
    left = [one for one in late if one.get("work_pool_name") not in moving]
    if left:
        return failed(
            f"{len(left)} runs are late: {', '.join(sorted(one['name'] for one in left)[:5])}. "
            "Nobody takes them up.",
            "prefect work-pool ls",
            "see RUNBOOK.md#no-worker",
        )
    if not scheduled:
        return warned("No deployment has an active schedule.", DEPLOY)
    if not due:
        return unknown(f"{len(scheduled)} schedules are younger than 2 minutes; ask again.")
    waiting = f"{len(late)} wait behind others" if late else "none is late"
    return passed(f"{len(scheduled)} schedules have runs ahead; {waiting}.")


def _moving(client: PrefectClient, pools: set[str | None]) -> set[str | None]:
    """Return those of ``pools`` where a worker is online and a run is at work or about to be.

    There a late run waits its turn: pool ``gpu`` lets one through at a time.
    """
    if not pools:
        return set()
    at_work = {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}}
    runs = client.every("/flow_runs/filter", {"flow_runs": at_work})
    busy = {one.get("work_pool_name") for one in runs} & pools
    return {pool for pool in busy if pool is not None and _online(client, pool)}


def _online(client: PrefectClient, pool: str) -> int:
    """Return how many workers of a pool report."""
    found = client.every(f"/work_pools/{pool}/workers/filter")
    return sum(one["status"] == "ONLINE" for one in found)


def _client(settings: Settings) -> PrefectClient:
    return prefect_client(settings, seconds=_SECONDS)


def _active(deployment: dict[str, Any]) -> list[bool]:
    return [bool(schedule["active"]) for schedule in deployment["schedules"]]


def _declared(file: Path) -> set[tuple[str, str]]:
    """Return name and entrypoint of every deployment that the file declares."""
    import yaml

    declared: list[dict[str, Any]] = yaml.safe_load(file.read_text())["deployments"]
    return {(one["name"], one["entrypoint"]) for one in declared}


def _dig(value: Any, *names: str) -> Any:
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
