"""Free TCP ports on 127.0.0.1."""

from __future__ import annotations

import socket

from slm_core.errors import StackError

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
    for port in range(preferred, preferred + _TRIED):
        if is_free(port):
            return port
    raise StackError(
        f"No free port on 127.0.0.1 from {preferred} to {preferred + _TRIED - 1}. "
        "Stop what listens there, then run `make up` again."
    )
