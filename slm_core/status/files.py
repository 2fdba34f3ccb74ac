"""``SLM_HOME/status.json`` and ``status.html``: what the flow ``status`` leaves for others."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from slm_core.status.page import to_page
from slm_core.status.snapshot import Operations, Status
from slm_core.system.durable import replace_file


class StatusFiles:
    """The two files."""

    def __init__(self, home: Path) -> None:
        self.json = home / "status.json"
        self.page = home / "status.html"

    def write(self, status: Status) -> None:
        """Replace both files.

        Raises:
            OSError: there is no room for them, or the folder cannot be written.
        """
        self.json.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.page, to_page(status).encode())
        replace_file(self.json, status.model_dump_json(indent=2).encode() + b"\n")

    def operations(self) -> Operations | None:
        """Return what the Prefect server last said; None when it was never asked."""
        try:
            return Status.model_validate_json(self.json.read_bytes()).operations
        except (OSError, ValidationError):
            return None
