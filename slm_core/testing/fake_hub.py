"""The few pages of the Hugging Face hub that are asked before a model is downloaded.

Speaks its HTTP: metadata with file sizes, the gate's check, the token's owner and small files.
No weights can be had here; asking for some is noted, for a test to see.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from slm_core.testing.loopback import LoopbackHandler, LoopbackServer

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


class FakeHub(LoopbackServer):
    """A hub on this machine that holds ``models``; answers after ``delay_seconds``."""

    def __init__(self, models: dict[str, HubModel], *, delay_seconds: float = 0.0) -> None:
        super().__init__(_Handler)
        self.models = models
        self.delay_seconds = delay_seconds
        self.status: int | None = None
        """Answer everything with this status."""
        self.asked: list[str] = []
        """Every path, in order."""

    def page(self, path: str, token: str | None) -> tuple[int, dict[str, str], Any]:
        """Return status, headers and body of one page, as the owner of ``token`` sees it."""
        if self.status is not None:
            return self.status, {}, {"error": "out of order"}
        if token not in (None, GOOD_TOKEN, STRANGER_TOKEN):
            said = {"X_Error_Message": "Invalid credentials in Authorization header"}
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
        return (404 if token else 401), {"X_Error_Code": "RepoNotFound"}, {"error": "not found"}


class _Handler(LoopbackHandler):
    owner: FakeHub

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.owner.asked.append(path)
        time.sleep(self.owner.delay_seconds)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        status, headers, body = self.owner.page(path, token)
        self.answer(status, body, **headers)

    do_HEAD = do_GET


def _gate(token: str | None) -> tuple[int, dict[str, str], Any]:
    status = 403 if token else 401
    return status, {"X_Error_Code": "GatedRepo"}, {"error": "gated"}
