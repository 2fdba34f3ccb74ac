"""Where this machine keeps what health checks read: one frozen value, so that tests can move it.

Nothing here touches the driver. Files of the driver itself are read only by child processes
(``host_child.py``), because opening one can block for ever.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path


@dataclass(frozen=True)
class HostPaths:
    """Paths and program names of one machine."""

    kernel_log: Path | None = None
    """A file with the kernel log, such as the host's log mounted into a container. None takes
    ``kmsg``, and ``journalctl`` where that cannot be read."""
    kmsg: Path = Path("/dev/kmsg")
    journalctl: str = "journalctl"
    nvidia_smi: str = "nvidia-smi"
    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    dev: Path = Path("/dev")
    python: str = field(default_factory=lambda: sys.executable)
    """Interpreter of the child processes."""

    def boot_id(self) -> str:
        """Return the id of this boot; empty where the system tells none."""
        try:
            return (self.proc / "sys/kernel/random/boot_id").read_text("utf-8").strip()
        except OSError:
            return ""

    def booted_at(self) -> datetime | None:
        """Return when this boot began, or None where the system does not say."""
        try:
            lines = (self.proc / "stat").read_text("utf-8").splitlines()
        except OSError:
            return None
        for line in lines:
            name, _, value = line.partition(" ")
            if name == "btime" and value.strip().isdigit():
                return datetime.fromtimestamp(int(value), UTC)
        return None
