"""The few pages of the Hugging Face hub that are asked before a model is downloaded.

Speaks its HTTP: metadata with file sizes, the gate's check, the token's owner and small files.
No weights can be had here; asking for some is noted, for a test to see.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

GOOD_TOKEN = "hf_good"
"""Of an account that has accepted every licence."""
STRANGER_TOKEN = "hf_stranger"
"""Of an account that has accepted none."""

LLAMA_8B_CONFIG = {
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 32,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}


@dataclass
class HubModel:
    """One model, as the hub describes it."""

    gated: bool = False
    licence: str = "apache-2.0"
    weights_bytes: int = 1_000_000
    parameters: int = 500_000
    weights_name: str = "model.safetensors"
    config: dict[str, Any] = field(default_factory=dict)

    def info(self, name: str) -> dict[str, Any]:
        """Return what ``/api/models/NAME?blobs=true`` answers."""
        digest = "a" * 64
        return {
            "id": name,
            "gated": "manual" if self.gated else False,
            "cardData": {"license": self.licence},
            "tags": [f"license:{self.licence}"],
            "safetensors": {"parameters": {"BF16": self.parameters}, "total": self.parameters},
            "siblings": [
                {"rfilename": "config.json", "size": 900, "blobId": "b" * 40},
                {"rfilename": "tokenizer.json", "size": 9_000_000, "blobId": "c" * 40},
                {"rfilename": "original/consolidated.pth", "size": self.weights_bytes},
                {
                    "rfilename": self.weights_name,
                    "size": self.weights_bytes,
                    "blobId": "d" * 40,
                    "lfs": {"sha256": digest, "size": self.weights_bytes, "pointerSize": 135},
                },
            ],
        }


class FakeHub:
    """A hub on this machine that holds ``models``; answers after ``delay_seconds``."""

    def __init__(self, models: dict[str, HubModel], *, delay_seconds: float = 0.0) -> None:
        self.models = models
        self.delay_seconds = delay_seconds
        self.status: int | None = None
        """Answer everything with this status."""
        self.asked: list[str] = []
        """Every path, in order."""

    def __enter__(self) -> FakeHub:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub._answer(self)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.split("?")[0]
        self.asked.append(path)
        time.sleep(self.delay_seconds)
        token = request.headers.get("Authorization", "").removeprefix("Bearer ") or None
        status, headers, body = self._page(path, token)
        data = json.dumps(body).encode()
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(data)

    def _page(self, path: str, token: str | None) -> tuple[int, dict[str, str], Any]:
        if self.status is not None:
            return self.status, {}, {"error": "out of order"}
        if token not in (None, GOOD_TOKEN, STRANGER_TOKEN):
            said = {"X-Error-Message": "Invalid credentials in Authorization header"}
            return 401, said, {"error": "Invalid credentials"}
        if path == "/api/whoami-v2":
            name = {GOOD_TOKEN: "ada", STRANGER_TOKEN: "mallory"}.get(token or "")
            return (200, {}, {"name": name}) if name else (401, {}, {"error": "who?"})
        for name, model in self.models.items():
            open_to = not model.gated or token == GOOD_TOKEN
            if path == f"/api/models/{name}":
                return 200, {}, model.info(name)
            if path == f"/api/models/{name}/auth-check":
                return (200, {}, {}) if open_to else _gate(token)
            if path == f"/{name}/resolve/main/config.json":
                return (200, {}, model.config) if open_to else _gate(token)
        # The hub does not tell a stranger whether a private model exists.
        return (404 if token else 401), {"X-Error-Code": "RepoNotFound"}, {"error": "not found"}


def _gate(token: str | None) -> tuple[int, dict[str, str], Any]:
    status = 403 if token else 401
    return status, {"X-Error-Code": "GatedRepo"}, {"error": "gated"}
