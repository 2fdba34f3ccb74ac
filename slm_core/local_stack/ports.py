"""Free TCP ports on 127.0.0.1."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from slm_core.errors import StackError
from slm_core.system.locks import try_lock

_TRIED = 20


def is_free(port: int) -> bool:
    """Whether nobody listens on ``port``."""
    with socket.socket() as probe:
        # A port whose last connections are still closing counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port(preferred: int) -> int:
    """Return ``preferred``, or the next port after it that nobody listens on.

    Raises:
        StackError: none of the next 20 is free.
    """
    for port in _from(preferred):
        if is_free(port):
            return port
    raise _none_free(preferred)


class Reservations:
    """Ports that one process has chosen and that nobody listens on yet."""

    def __init__(self, held: ExitStack) -> None:
        self._held = held
        # Of this user alone: in a shared one, others could hold every port.
        self._folder = Path(tempfile.gettempdir()) / f"slm-ports-{os.getuid()}"

    def free_port(self, preferred: int) -> int:
        """Return a port like `free_port`, and one that no other `Reservations` has chosen.

        Raises:
            StackError: none of the next 20 is free.
        """
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for port in _from(preferred):
            lock = (self._folder / str(port)).open("w")
            if not try_lock(lock.fileno()):
                lock.close()
                continue
            self._held.enter_context(lock)
            if is_free(port):
                return port
        raise _none_free(preferred)


@contextmanager
def reserving() -> Iterator[Reservations]:
    """Keep two processes that start servers at once from choosing the same ports.

    To be left once the servers listen.
    """
    with ExitStack() as held:
        yield Reservations(held)


def _from(preferred: int) -> range:
    return range(preferred, preferred + _TRIED)


def _none_free(preferred: int) -> StackError:
    return StackError(
        f"No free port on 127.0.0.1 from {preferred} to {preferred + _TRIED - 1}. "
        "Stop what listens there, then run `make up` again."
    )
