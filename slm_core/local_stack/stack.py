"""Start, inspect and stop the local stack; a part that died is started again.

Parts, in order: PostgreSQL, the Prefect server, the demo teacher (only when no teacher is
configured) and one worker per pool. They outlive the command that starts them, listen on
127.0.0.1 only, and keep their state and logs under ``SLM_HOME/stack``.
"""

from __future__ import annotations

import hashlib
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from slm_core.errors import StackError
from slm_core.local_stack import parts, postgres, prefect_api
from slm_core.local_stack.parts import Part, Site
from slm_core.local_stack.ports import Reservations, is_free, reserving
from slm_core.local_stack.processes import (
    ProcessId,
    is_alive,
    start,
    stop,
    stop_children,
    sweep,
    wait_until,
)
from slm_core.local_stack.state import StackState, write_private
from slm_core.settings import Settings
from slm_core.system.locks import try_lock

PREFERRED_PORTS = {"postgres": 54329, "prefect": 4200, "teacher": 8801}
DEPLOYED = ("prefect.yaml", "deployments", "flows", "tasks", "slm_core")
"""What a deployment depends on: declarations, pools, and the code behind the parameter forms."""
GRACE_SECONDS = 15.0
RUNS_GRACE_SECONDS = 120.0
"""For the runs of a worker: a training saves its checkpoint, in the middle of a step as well."""
_TOLD = (
    "PREFECT_API_URL",
    "PREFECT_API_AUTH_STRING",
    "DO_NOT_TRACK",
    "SLM_HOME",
    "SLM_DATABASE_URL",
    "SLM_SPOOL_DIR",
    "SLM_RETRAIN_THRESHOLD",
    "SLM_EXPECTED_GPUS",
    "SLM_KERNEL_LOG",
)
"""Variables of the stack that change what a command says which a person types."""
_WORKER = "worker-"
_GENERATED = "# Written by `make up`, removed by `make down`.\n"


class PartStatus(NamedTuple):
    """One part of the stack as it is now."""

    name: str
    process: ProcessId
    running: bool
    port: int | None
    log: Path


class LocalStack:
    """The stack of one ``SLM_HOME``, running the deployments of one project folder."""

    def __init__(
        self, settings: Settings, project: Path, on_progress: Callable[[str], None] | None = None
    ) -> None:
        self.settings = settings
        self.project = project.absolute()
        self.home = settings.home / "stack"
        self.shell_file = self.home / "environment.sh"
        """To be sourced by a shell that wants to talk to the stack."""
        self._state_file = self.home / "state.json"
        self._prefect_file = self.project / "prefect.toml"
        self._say = on_progress or (lambda _: None)
        self._state = StackState.load(self._state_file)

    def up(self) -> str:
        """Start what does not run, deploy what is new; return the dashboard's address.

        Raises:
            StackError: a part did not start, and those started before it stay up; or a stand-in
                would take the place of a teacher.
        """
        with self._exclusively(), reserving() as ports:
            self._keep_teacher()
            site = self._site(ports)
            self._ensure(parts.postgres_part(site))
            server = site.cluster.url(site.ports["postgres"])
            if not postgres.has_database(server, "prefect"):
                parts.make_encryption_key(site)
            for database in ("prefect", "slm"):
                postgres.ensure_database(server, database)
            self._tell_shells(site)  # also where what follows fails: the database is up
            self._ensure(parts.prefect_part(site))
            self._deploy(site)
            if site.teacher_model is not None:
                self._ensure(parts.teacher_part(site, site.teacher_model))
            for pool in prefect_api.POOLS:
                self._ensure(parts.worker_part(site, pool))
            return site.dashboard

    def down(self) -> None:
        """Stop every part and whatever it started; other processes are not touched.

        Runs of the workers are asked first, while the server can still be told how they ended:
        a worker that is asked to stop kills them at once and leaves them "Running".

        Raises:
            StackError: something would not end; it is still on record.
        """
        with self._exclusively():
            for name, process in reversed(self._state.processes.items()):
                self._say(f"{name}: stopping")
                if name.startswith(_WORKER):
                    stop_children(process, grace_seconds=RUNS_GRACE_SECONDS)
                by = postgres.FAST_SHUTDOWN if name == "postgres" else signal.SIGTERM
                stop(process, by=by, grace_seconds=GRACE_SECONDS)
            sweep(str(self.home), grace_seconds=GRACE_SECONDS)
            left = [name for name, process in self._state.processes.items() if is_alive(process)]
            if left:
                raise StackError(f"Still running after SIGKILL: {', '.join(left)}.")
            if self._prefect_file_text() == _prefect_file(self._state.ports.get("prefect")):
                self._prefect_file.unlink()
            self.shell_file.unlink(missing_ok=True)
            self._state_file.unlink(missing_ok=True)
            if self._state.own_teacher:
                StackState(own_teacher=True).save(self._state_file)

    def status(self) -> list[PartStatus]:
        """Return every part that was started, and whether it still runs."""
        state = StackState.load(self._state_file)
        return [
            PartStatus(name, process, is_alive(process), state.ports.get(name), self._log(name))
            for name, process in state.processes.items()
        ]

    def _keep_teacher(self) -> None:
        """Refuse to put the stand-in where the workers had a teacher, unless it is asked for."""
        own, had = self.settings.names_teacher, self._state.own_teacher
        chosen = "teacher_model" in self.settings.model_fields_set
        asked = chosen and self.settings.teacher_model == parts.TEACHER_MODEL
        if had and not own and not asked:
            raise StackError(
                "This stack had a teacher of its own, and this shell names none, so a stand-in "
                "would answer. Set AZURE_ENDPOINT or OPENAI_BASE_URL, the key and "
                "SLM_TEACHER_MODEL as before. If you want the stand-in: "
                f"SLM_TEACHER_MODEL={parts.TEACHER_MODEL} make up"
            )
        if had is not own and any(
            name.startswith(_WORKER) and is_alive(process)
            for name, process in self._state.processes.items()
        ):
            self._say("workers that run keep their teacher; `make down`, `make up` changes it")
        self._state.own_teacher = own
        self._state.save(self._state_file)

    def _site(self, ports: Reservations) -> Site:
        """Settle the data directory and the ports; a port once given stays."""
        for name, preferred in PREFERRED_PORTS.items():
            if name not in self._state.ports:
                self._state.ports[name] = ports.free_port(preferred)
        return Site(
            settings=self.settings,
            project=self.project,
            home=self.home,
            cluster=postgres.prepare_cluster(self.home / "postgres"),
            ports=self._state.ports,
            teacher_key=self._state.teacher_key,
        )

    def _ensure(self, part: Part) -> None:
        """Start the part unless it runs; return once it is ready."""
        process = self._state.processes.get(part.name)
        log = self._log(part.name)
        if process is not None and is_alive(process):
            self._say(f"{part.name}: already running")
        else:
            port = self._state.ports.get(part.name)
            if port is not None and not is_free(port):
                raise StackError(
                    f"Port {port} of {part.name} now belongs to another program. "
                    "Run `make down`, then `make up`.",
                )
            self._say(f"{part.name}: starting")
            process = start(
                part.command,
                log,
                environment=part.environment,
                cwd=part.cwd,
                user=part.user,
            )
            self._state.processes[part.name] = process
            self._state.save(self._state_file)
        wait_until(part.ready, process, log, what=part.name, timeout_seconds=part.timeout_seconds)

    def _deploy(self, site: Site) -> None:
        """Make pools and deployments as the project declares them, unless nothing changed."""
        digest = self._declared()
        url = self.settings.notify_url
        address = None if url is None else url.get_secret_value()
        if self._state.is_deployed(digest, address):
            return
        self._say("deployments: registering")
        result = subprocess.run(
            parts.deploy_command(),
            cwd=self.project,
            env=site.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if result.returncode != 0:
            raise StackError(f"`make deploy` failed:\n{result.stdout}{result.stderr}")
        for line in result.stdout.splitlines():
            if line.startswith("notifications"):
                self._say(line)
        self._state.note_deployed(digest, address)
        self._state.save(self._state_file)

    def _declared(self) -> str:
        """Digest of everything that the deployments depend on."""
        found = hashlib.sha256()
        for top in map(self.project.joinpath, DEPLOYED):
            for file in sorted(top.rglob("*")) if top.is_dir() else [top]:
                if file.suffix in (".py", ".yaml", ".json") and file.is_file():
                    found.update(f"{file.relative_to(self.project)}\n".encode())
                    found.update(file.read_bytes())
        return found.hexdigest()

    def _tell_shells(self, site: Site) -> None:
        """Let a shell find the commands ``slm`` and ``prefect``, and them find this stack."""
        ours = site.environment()
        told = {name: ours[name] for name in _TOLD if name in ours}
        told["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] = parts.HEARTBEAT_SECONDS
        exports = [f"export {name}={shlex.quote(value)}\n" for name, value in told.items()]
        exports.append(f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"\n')
        write_private(self.shell_file, "".join(exports))
        text = self._prefect_file_text()
        if text is None or text.startswith(_GENERATED):
            self._prefect_file.write_text(_prefect_file(site.ports["prefect"]))
        else:
            self._say(f"{self._prefect_file} is yours and stays; source {self.shell_file}")

    def _prefect_file_text(self) -> str | None:
        return self._prefect_file.read_text() if self._prefect_file.exists() else None

    def _log(self, name: str) -> Path:
        return self.home / "logs" / f"{name}.log"

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        """Keep a second `make up` or `make down` out, and read the state afresh."""
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "lock").open("w") as lock:
            if not try_lock(lock.fileno()):
                raise StackError("Another `make up` or `make down` is at work.")
            self._state = StackState.load(self._state_file)
            yield


def _prefect_file(port: int | None) -> str:
    """Text of the prefect.toml that points the ``prefect`` command at a stack."""
    return f'{_GENERATED}[api]\nurl = "http://127.0.0.1:{port}/api"\n'
