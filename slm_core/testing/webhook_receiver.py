"""A webhook receiver on loopback: takes what is posted to its secret path, and remembers it."""

from __future__ import annotations

import json
import secrets
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Self


class WebhookReceiver:
    """The server; a context manager. ``received`` holds the bodies, in order of arrival."""

    def __init__(self) -> None:
        self.token = secrets.token_hex(16)
        """The secret part of the address."""
        self.received: list[dict[str, Any]] = []
        self.refused: list[str] = []
        """Why each request was refused: another path, or a body that is no JSON object."""
        receiver = self

        class Handler(_Handler):
            owner = receiver

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        """The whole address, secret included."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/hooks/{self.token}"

    def wait_for(self, count: int, *, timeout_seconds: float) -> list[dict[str, Any]]:
        """Return what arrived, once that is ``count`` bodies or the time is up."""
        deadline = time.monotonic() + timeout_seconds
        while len(self.received) < count and time.monotonic() < deadline:
            time.sleep(0.05)
        return list(self.received)

    def __enter__(self) -> Self:
        Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    owner: WebhookReceiver

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        problem = self._problem(body)
        if problem:
            self.owner.refused.append(problem)
        else:
            self.owner.received.append(json.loads(body))
        self.send_response(400 if problem else 204)
        self.end_headers()

    def _problem(self, body: bytes) -> str:
        if self.path != f"/hooks/{self.owner.token}":
            return f"path {self.path}"
        if self.headers.get("Content-Type") != "application/json":
            return f"content type {self.headers.get('Content-Type')}"
        try:
            return "" if isinstance(json.loads(body), dict) else "no JSON object"
        except ValueError as error:
            return f"{error}: {body[:500]!r}"
