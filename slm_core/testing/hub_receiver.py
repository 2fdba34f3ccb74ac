"""A Hugging Face hub on loopback: takes what ``huggingface_hub`` sends, and remembers it.

It knows repositories, their visibility, and commits of small files. It asks for a token, and
like the hub it keeps the visibility of a repository that exists.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import Any

from slm_core.testing.loopback import LoopbackHandler, LoopbackServer

_OID = "0123456789abcdef" * 2 + "01234567"


@dataclass
class Repo:
    """One repository."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)


class HubReceiver(LoopbackServer):
    """The server; a context manager. ``repos`` holds what arrived.

    ``base_url`` is the value for ``HF_ENDPOINT``.
    """

    def __init__(self, *, token: str = "hf_test") -> None:
        super().__init__(_Handler)
        self.token = token
        self.repos: dict[str, Repo] = {}
        self.bodies: list[bytes] = []
        """Everything that was sent, as it came."""


class _Handler(LoopbackHandler):
    owner: HubReceiver
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self._refused():
            return
        name = self.path.partition("?")[0].removeprefix("/api/models/")
        repo = self.owner.repos.get(name)
        if repo is None:
            self._answer(404, {"error": "Repository not found"})
            return
        files = [{"rfilename": file} for file in repo.files]
        self._answer(200, {"id": name, "private": repo.private, "tags": [], "siblings": files})

    def do_POST(self) -> None:
        body = self.body()
        if self._refused():
            return
        self.owner.bodies.append(body)
        path = self.path.partition("?")[0]
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._answer(200, {"files": files})
        elif path.endswith("/commit/main"):
            name = path.removeprefix("/api/models/").removesuffix("/commit/main")
            self._commit(name, body)
        else:
            self._answer(404, {"error": f"no such route: {path}"})

    def _create(self, wanted: dict[str, Any]) -> None:
        name = "/".join(part for part in (wanted.get("organization"), wanted["name"]) if part)
        url = f"{self.owner.base_url}/{name}"
        if name in self.owner.repos:
            self._answer(409, {"error": "You already created this model repo", "url": url})
            return
        # The hub takes both forms; newer clients send the second.
        private = wanted.get("private", wanted.get("visibility") == "private")
        self.owner.repos[name] = Repo(private=bool(private))
        self._answer(200, {"url": url, "name": name, "id": _OID})

    def _commit(self, name: str, body: bytes) -> None:
        repo = self.owner.repos[name]
        for line in body.splitlines():
            part = json.loads(line)
            if part["key"] == "header":
                repo.messages.append(part["value"]["summary"])
            elif part["key"] == "file":
                file = part["value"]
                repo.files[file["path"]] = base64.b64decode(file["content"])
        url = f"{self.owner.base_url}/{name}/commit/{_OID}"
        self._answer(200, {"success": True, "commitUrl": url, "commitOid": _OID})

    def _refused(self) -> bool:
        if self.headers.get("authorization") == f"Bearer {self.owner.token}":
            return False
        self._answer(401, {"error": "Invalid username or password."})
        return True

    def _answer(self, status: int, said: dict[str, Any]) -> None:
        self.answer(status, said, **({"x_error_message": said["error"]} if status >= 400 else {}))
