"""The services of ``docker/compose.yaml`` as processes of this machine, without a container.

Commands, settings, secret files and the proxy's configuration are those of the compose file, as
``docker-compose config`` renders it; only addresses and folders are replaced. So what is
measured and tested here is what the file says. PostgreSQL and Redis are given.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from slm_core.errors import StackError
from slm_core.local_stack import prefect_api
from slm_core.local_stack.compose_file import SEARCH_PATH, read_services
from slm_core.local_stack.ports import free_port
from slm_core.local_stack.processes import MARKER, ProcessId, start, stop, sweep, wait_until
from slm_core.local_stack.redis_server import RedisAddress

REPLICAS = ("prefect-api-1", "prefect-api-2")
_DATABASES = {"prefect-db": "prefect", "store-db": "slm"}
"""Service to the database and role in it."""
_START_SECONDS = 120.0
_WHILE_ONE_DIES = (httpx.codes.BAD_GATEWAY, httpx.codes.SERVICE_UNAVAILABLE)


class Composed:
    """A Prefect service with replicas, as processes on loopback.

    ``processes`` says what runs, by service and, where a service has several, a number;
    ``secrets`` holds the content of each secret file.
    """

    def __init__(
        self, repository: Path, home: Path, postgres_url: str, redis: RedisAddress
    ) -> None:
        self.home = home
        self.processes: dict[str, ProcessId] = {}
        self.services = read_services(repository / "docker" / "compose.yaml")
        self._repository = repository
        self._redis = redis
        self._postgres_port = int(postgres_url.rsplit("/", 1)[0].rsplit(":", 1)[1])
        base = random.randint(31_000, 45_000)
        self.ports = {
            name: free_port(base + 25 * number)
            for number, name in enumerate((*REPLICAS, "proxy", "worker-cpu", "worker-gpu"))
        }
        self.secrets = self._make_secrets(postgres_url)

    @property
    def api_url(self) -> str:
        """The one address of all replicas."""
        return f"http://127.0.0.1:{self.ports['proxy']}/api"

    @property
    def login(self) -> str:
        """``user:password`` of the API."""
        return self.secrets["prefect-login"]

    def ask(self, path: str, body: Any = None) -> Any:
        """Send one request, signed in: POST with a body, GET without; return the answer.

        As Prefect's own client does, it asks again when a replica died over the request. So what
        is created should carry an idempotency key.

        Raises:
            httpx.HTTPError: refused, or not answered.
        """
        user, _, password = self.login.partition(":")
        method = "GET" if body is None else "POST"
        with httpx.Client(base_url=self.api_url, auth=(user, password), timeout=60) as client:
            for pause in (0.5, 1.0, 2.0, 4.0, 0.0):
                answer = client.request(method, path, json=body)
                if answer.status_code not in _WHILE_ONE_DIES:
                    break
                time.sleep(pause)
            answer.raise_for_status()
            return answer.json() if answer.content else None

    def environment(self, service: str, **more: str) -> dict[str, str]:
        """Return what a process of ``service`` sees, secrets aside."""
        ours = {name: value for name, value in self._replaced(service).items() if value}
        kept = self.services[service].environment
        return (
            {name: ours.get(name, value) for name, value in kept.items()}
            | {
                "PATH": SEARCH_PATH,
                "HOME": str(self.home),
                "PREFECT_HOME": str(self.home / "prefect"),
                "PYTHONPATH": str(self._repository),
                MARKER: str(self.home),
            }
            | more
        )

    def migrate(self) -> None:
        """Run the one-shot service that prepares the database.

        Raises:
            StackError: it failed; the message holds its words.
        """
        command, environment = self._process("prefect-migrate", "prefect-migrate")
        result = subprocess.run(
            command, env=environment, cwd=self._repository, capture_output=True, text=True
        )
        if result.returncode != 0:
            raise StackError(f"prefect-migrate failed:\n{result.stdout}{result.stderr}")

    def start(self, service: str, number: int | None = None, **more: str) -> ProcessId:
        """Start one process of a service, with further variables; see ``wait``.

        Args:
            service: its name in the compose file.
            number: which one, of a service that has several.
            more: variables beside those of the compose file.
        """
        name = service if number is None else f"{service}-{number}"
        command, environment = self._process(service, name, **more)
        process = start(command, self.log(name), environment=environment, cwd=self._repository)
        self.processes[name] = process
        return process

    def wait(self, name: str) -> None:
        """Return once a replica or the proxy answers.

        Raises:
            StackError: it ended, or did not answer in time.
        """
        address = f"http://127.0.0.1:{self.ports[name]}/api"
        wait_until(
            lambda _: prefect_api.answers(address),
            self.processes[name],
            self.log(name),
            what=name,
            timeout_seconds=_START_SECONDS,
        )

    def log(self, name: str) -> Path:
        """Return the file with the output of a process."""
        return self.home / "logs" / f"{name}.log"

    def kill(self, name: str) -> None:
        """End one process with SIGKILL."""
        stop(self.processes.pop(name), by=signal.SIGKILL, grace_seconds=10)

    def stop(self, name: str, grace_seconds: float = 60) -> None:
        """End one process as Docker does: SIGTERM, and SIGKILL after the grace."""
        stop(self.processes.pop(name), by=signal.SIGTERM, grace_seconds=grace_seconds)

    def _process(self, service: str, name: str, **more: str) -> tuple[list[str], dict[str, str]]:
        """Return command and environment of one process; its secrets lie in files, as there."""
        folder = self.home / "run-secrets" / name
        folder.mkdir(parents=True, exist_ok=True)
        for target, source in self.services[service].secrets.items():
            (folder / target).write_text(self.secrets[source])
        entrypoint = str(self._repository / "docker" / "entrypoint.sh")
        command = [
            str(self._repository / "docker" / "Caddyfile")
            if word == "/etc/caddy/Caddyfile"
            else word
            for word in self.services[service].command
        ]
        return [entrypoint, *command], self.environment(service, SECRETS_DIR=str(folder), **more)

    def _replaced(self, service: str) -> dict[str, str]:
        """Values that differ from the compose file's: addresses and folders."""
        data = self.home / "data"
        replicas = " ".join(f"127.0.0.1:{self.ports[name]}" for name in REPLICAS)
        return {
            "PREFECT_SERVER_API_HOST": "127.0.0.1",
            "PREFECT_SERVER_API_PORT": str(self.ports.get(service, "")),
            "PREFECT_SERVER_UI_API_URL": self.api_url,
            "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": self.api_url.removesuffix("/api"),
            "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(self.home / "ui" / service),
            "PREFECT_SERVER_DATABASE_HOST": "127.0.0.1",
            "PREFECT_SERVER_DATABASE_PORT": str(self._postgres_port),
            "PREFECT_REDIS_MESSAGING_HOST": "127.0.0.1",
            "PREFECT_REDIS_MESSAGING_PORT": str(self._redis.port),
            "PREFECT_API_URL": self.api_url,
            "PREFECT_WORKER_WEBSERVER_PORT": str(self.ports.get(service, "")),
            "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(data / "results"),
            "SLM_REPO": str(self._repository),
            "SLM_HOME": str(data),
            "SLM_DATABASE_URL": f"postgresql://slm@127.0.0.1:{self._postgres_port}/slm",
            "SITE_ADDRESS": f"http://127.0.0.1:{self.ports['proxy']}",
            "PREFECT_REPLICAS": replicas,
            "XDG_DATA_HOME": str(self.home / "caddy"),
            "XDG_CONFIG_HOME": str(self.home / "caddy"),
        }

    def _make_secrets(self, postgres_url: str) -> dict[str, str]:
        """Make the secret files as a person would, and the databases that they open."""
        folder = self.home / "secrets"
        script = str(self._repository / "docker" / "make-secrets.sh")
        subprocess.run([script, str(folder)], check=True, capture_output=True)
        secrets = {file.name: file.read_text() for file in folder.iterdir()}
        secrets["redis-password"] = self._redis.password
        secrets["docket-url"] = f"redis://:{self._redis.password}@127.0.0.1:{self._redis.port}/1"
        for service, role in _DATABASES.items():
            _create_database(postgres_url, role, secrets[f"{service}-password"])
        return secrets


def _create_database(postgres_url: str, role: str, password: str) -> None:
    """Create role and database of that name, as the image of PostgreSQL does."""
    import psycopg
    from psycopg import sql

    url = postgres_url.replace("postgresql+psycopg://", "postgresql://", 1)
    name = sql.Identifier(role)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            sql.SQL("create role {} superuser login password {}").format(
                name, sql.Literal(password)
            )
        )
        connection.execute(sql.SQL("create database {} owner {}").format(name, name))


@contextmanager
def composed(
    repository: Path, home: Path, postgres_url: str, redis: RedisAddress
) -> Iterator[Composed]:
    """Bring up database, both replicas, two services processes and the proxy; end them after.

    They also end when this process is killed in the block. ``postgres_url`` is that of a
    superuser on a server without databases ``prefect`` and ``slm``.
    """
    service = Composed(repository, home, postgres_url, redis)
    code = "import sys; sys.stdin.read(); from slm_core.local_stack.processes import sweep\n"
    code += f"sweep({str(home)!r}, grace_seconds=15)"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=repository,
        stdin=subprocess.PIPE,
        start_new_session=True,
    ):
        try:
            service.migrate()
            first, second = REPLICAS
            service.start("proxy")
            service.start(first)
            service.wait(first)
            service.start(second)
            for number in (1, 2):
                service.start("prefect-services", number)
            service.wait(second)
            service.wait("proxy")
            yield service
        finally:
            sweep(str(home), grace_seconds=15)
