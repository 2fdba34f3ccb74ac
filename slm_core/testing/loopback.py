"""What every stand-in for a server on the network has: an address on loopback, and a quiet end."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Self

_POLL_SECONDS = 0.02


class LoopbackHandler(BaseHTTPRequestHandler):
    """One request. A subclass declares ``owner``: the ``LoopbackServer`` that it belongs to."""

    def body(self) -> bytes:
        """Return what was sent; to be read once."""
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, status: int, said: Any = None, **headers: str) -> None:
        """Answer with ``said`` as JSON, or as it is, or without; headers have ``_`` for ``-``."""
        if said is None:
            data = b""
        else:
            data = said if isinstance(said, bytes) else json.dumps(said).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if data:
            self.send_header("Content-Type", "application/json")
        if status != 204:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet: tests look at what arrived."""


class LoopbackServer:
    """An HTTP server; a context manager. A subclass keeps what arrived."""

    def __init__(self, handler: type[LoopbackHandler]) -> None:
        bound = type("Handler", (handler,), {"owner": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), bound)
        self._server.daemon_threads = True

    @property
    def base_url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        serve = self._server.serve_forever
        Thread(target=serve, args=(_POLL_SECONDS,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
