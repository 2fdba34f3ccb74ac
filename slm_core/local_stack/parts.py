"""The parts of the local stack: the command, environment and readiness check of each.

Nothing here starts anything. The Prefect settings below are what makes a single-machine
Prefect dependable: PostgreSQL (SQLite loses events under load), concurrency leases on disk
(in memory a dead run's slot never comes back), no private fallback server, no telemetry.
"""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import httpx

from slm_core.local_stack import postgres, prefect_api
from slm_core.local_stack.postgres import Cluster
from slm_core.local_stack.processes import MARKER, ProcessId
from slm_core.local_stack.state import write_private
from slm_core.settings import Settings

TEACHER_MODEL = "nano-teacher"
HEARTBEAT_SECONDS = "30"
"""Of every flow run, wherever it begins; a silent one counts as dead after three."""


class Part(NamedTuple):
    """How to start one part, and how to see that it works."""

    name: str
    command: list[str]
    environment: Mapping[str, str]
    cwd: Path
    ready: Callable[[ProcessId], bool]
    """Asked about the started process, again and again."""
    timeout_seconds: float
    user: str | None = None
    """Account to run as; None means the caller's own."""


class Site(NamedTuple):
    """Where this stack runs and which addresses its parts have."""

    settings: Settings
    project: Path
    home: Path
    cluster: Cluster
    ports: Mapping[str, int]
    teacher_key: str

    @property
    def dashboard(self) -> str:
        return f"http://127.0.0.1:{self.ports['prefect']}"

    @property
    def api_url(self) -> str:
        return f"{self.dashboard}/api"

    @property
    def login(self) -> str | None:
        """``user:password`` of the Prefect server; None lets everyone in."""
        login = self.settings.prefect_login
        return None if login is None else login.get_secret_value()

    @property
    def encryption_key(self) -> Path:
        """File with the key of Prefect's blocks; a database older than this has its key inside."""
        return self.home / "encryption-key"

    @property
    def database_url(self) -> str:
        """The store: PostgreSQL of this stack, unless the settings name another."""
        if "database_url" in self.settings.model_fields_set:
            return self.settings.database_url
        return self.cluster.url(self.ports["postgres"], "slm")

    @property
    def teacher_model(self) -> Path | None:
        """Model of the demo teacher; None when a teacher is configured."""
        return None if self.settings.names_teacher else self.settings.assets / TEACHER_MODEL

    def environment(self) -> dict[str, str]:
        """Return what every Prefect process of the stack sees."""
        return (
            self.settings.child_environment()
            | {
                MARKER: str(self.home),
                "SLM_DATABASE_URL": self.database_url,
                "PREFECT_HOME": str(self.home / "prefect"),
                "PREFECT_API_URL": self.api_url,
                "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
                "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
                "DO_NOT_TRACK": "1",
            }
            | ({"PREFECT_API_AUTH_STRING": self.login} if self.login else {})
        )


def make_encryption_key(site: Site) -> None:
    """Make the key of a new Prefect database, which without one keeps its own beside the blocks."""
    if not site.encryption_key.exists():
        write_private(site.encryption_key, base64.urlsafe_b64encode(os.urandom(32)).decode())


def postgres_part(site: Site) -> Part:
    port = site.ports["postgres"]
    return Part(
        "postgres",
        site.cluster.command(port),
        environment=postgres.ENVIRONMENT | {MARKER: str(site.home)},
        cwd=site.cluster.data.parent,
        ready=lambda _: postgres.answers(site.cluster.url(port)),
        timeout_seconds=60,
        user=site.cluster.user,
    )


def prefect_part(site: Site) -> Part:
    port = site.ports["prefect"]
    key = site.encryption_key
    database = site.cluster.url(port=site.ports["postgres"], database="prefect", driver="asyncpg")
    return Part(
        "prefect",
        _prefect("server", "start", "--host", "127.0.0.1", "--port", str(port)),
        environment=site.environment()
        | {
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": database,
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
                "prefect.server.concurrency.lease_storage.filesystem"
            ),
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            # Runs and their logs would stay for good; what must be kept is in the store.
            "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
        }
        | ({"PREFECT_SERVER_ENCRYPTION_KEY": key.read_text()} if key.exists() else {})
        | ({"PREFECT_SERVER_API_AUTH_STRING": site.login} if site.login else {}),
        cwd=site.project,
        ready=lambda _: prefect_api.answers(site.api_url),
        timeout_seconds=120,
    )


def teacher_part(site: Site, model: Path) -> Part:
    """The shipped nano teacher behind the HTTP interface of a hosted model."""
    port = site.ports["teacher"]
    address = f"http://127.0.0.1:{port}"
    serve = ["serve", "--model", str(model), "--host", "127.0.0.1", "--port", str(port)]
    return Part(
        "teacher",
        [str(Path(sys.executable).with_name("slm")), *serve],
        environment=site.environment() | {"SLM_SERVER_API_KEY": site.teacher_key},
        cwd=site.project,
        ready=lambda _: _answers(address),
        timeout_seconds=120,
    )


def worker_part(site: Site, pool: str) -> Part:
    """Return the worker of a pool. It serves every queue, the most urgent one first."""
    name = f"worker-{pool}"
    limit = prefect_api.POOLS[pool]
    limits = ["--limit", str(limit)] if limit else []
    return Part(
        name,
        _prefect("worker", "start", "--name", name, "--type", "process", "--pool", pool, *limits),
        environment=site.environment()
        | _teacher_variables(site)
        | {
            "SLM_REPO": str(site.project),
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": HEARTBEAT_SECONDS,
            "PREFECT_LOGGING_EXTRA_LOGGERS": "slm_core,tasks,flows",
            "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(site.settings.home / "results"),
        },
        cwd=site.project,
        ready=lambda worker: prefect_api.is_online(
            site.api_url, pool, name, since=worker.started, login=site.login
        ),
        timeout_seconds=60,
    )


def deploy_command() -> list[str]:
    """Return the command that makes the server know pools, queues and deployments."""
    return [sys.executable, "-m", "tasks.deploy"]


def _teacher_variables(site: Site) -> dict[str, str]:
    if site.teacher_model is None:
        return {}
    return {
        "AZURE_ENDPOINT": f"http://127.0.0.1:{site.ports['teacher']}",
        "AZURE_API_KEY": site.teacher_key,
        "SLM_TEACHER_MODEL": TEACHER_MODEL,
    }


def _prefect(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "prefect", *arguments]


def _answers(address: str) -> bool:
    """Whether an HTTP server answers there, whatever it says."""
    try:
        httpx.get(address, timeout=2)
    except httpx.TransportError:
        return False
    return True
