"""A webhook receiver on loopback: takes what is posted to its secret path, and remembers it."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any

from slm_core.testing.loopback import LoopbackHandler, LoopbackServer


class WebhookReceiver(LoopbackServer):
    """The server; a context manager. ``received`` holds the bodies, in order of arrival."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.token = secrets.token_hex(16)
        """The secret part of the address."""
        self.received: list[dict[str, Any]] = []
        self.refused: list[str] = []
        """Why each request was refused: another path, or a body that is no JSON object."""

    @property
    def url(self) -> str:
        """The whole address, secret included."""
        return f"{self.base_url}/hooks/{self.token}"

    def wait_for(self, count: int, *, timeout_seconds: float) -> list[dict[str, Any]]:
        """Return what arrived, once that is ``count`` bodies or the time is up."""
        deadline = time.monotonic() + timeout_seconds
        while len(self.received) < count and time.monotonic() < deadline:
            time.sleep(0.05)
        return list(self.received)


class _Handler(LoopbackHandler):
    owner: WebhookReceiver

    def do_POST(self) -> None:
        body = self.body()
        problem = self._problem(body)
        if problem:
            self.owner.refused.append(problem)
        else:
            self.owner.received.append(json.loads(body))
        self.answer(400 if problem else 204)

    def _problem(self, body: bytes) -> str:
        if self.path != f"/hooks/{self.owner.token}":
            return f"path {self.path}"
        if self.headers.get("Content-Type") != "application/json":
            return f"content type {self.headers.get('Content-Type')}"
        try:
            return "" if isinstance(json.loads(body), dict) else "no JSON object"
        except ValueError as error:
            return f"{error}: {body[:500]!r}"
