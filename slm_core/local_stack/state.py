"""What the stack remembers between `make up` and `make down`: one file, written atomically."""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path

from pydantic import BaseModel, Field

from slm_core.local_stack.processes import ProcessId


class StackState(BaseModel):
    """Ports, keys and processes of one stack."""

    teacher_key: str = Field(default_factory=lambda: secrets.token_urlsafe(24))
    """API key of the demo teacher."""
    ports: dict[str, int] = {}
    """Part to port on 127.0.0.1; kept until the stack goes down, so that addresses stay valid."""
    processes: dict[str, ProcessId] = {}
    """Part to process, in the order in which they were first started."""
    deployed: str = ""
    """Digest of the deployments, and the code behind them, that the server knows."""
    notified: str = ""
    """Digest of the address that news is posted to; empty when the deployments have none."""
    own_teacher: bool = False
    """Whether the workers were told of a teacher, so that no stand-in may take its place."""

    @classmethod
    def load(cls, file: Path) -> StackState:
        """Read the state, or return that of a stack which never ran."""
        return cls.model_validate_json(file.read_bytes()) if file.exists() else cls()

    def is_deployed(self, declared: str, notify_url: str | None) -> bool:
        """Whether the server knows what is declared, and posts news to the address if one is given.

        Args:
            declared: digest of everything that the deployments depend on.
            notify_url: None says nothing: a shell without it does not ask for silence.
        """
        same = notify_url is None or _digest(notify_url) == self.notified
        return same and declared == self.deployed

    def note_deployed(self, declared: str, notify_url: str | None) -> None:
        """Remember what the server was told; of the address, which may be secret, a digest."""
        self.deployed = declared
        if notify_url is not None:
            self.notified = _digest(notify_url)

    def save(self, file: Path) -> None:
        """Write the state; only its owner may read it, because it holds a key."""
        write_private(file, self.model_dump_json(indent=2))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def write_private(file: Path, text: str) -> None:
    """Replace ``file`` as a whole, readable by its owner only."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    new.touch(mode=0o600)
    new.write_text(text)
    new.replace(file)
