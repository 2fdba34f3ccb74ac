"""What the driver's files say, read by a child process that may be left behind."""

from __future__ import annotations

import errno
import re
from typing import Any, NamedTuple

from slm_core.health import bounded
from slm_core.health.child_output import STARTING, command, doing, objects
from slm_core.health.host import HostPaths
from slm_core.health.pci import normal_bdf

_AT_DRIVER = re.compile(r"nvidia|nv_|python|pt_main")


class HostFiles(NamedTuple):
    """The machine as the kernel shows it, without a word from NVML."""

    finished: bool
    """Whether everything could be read; if not, ``hung_at`` says where it stopped."""
    hung_at: str = ""
    unkillable: bool = False
    nodes: tuple[str, ...] = ()
    """Names in /dev, such as ``nvidia0``."""
    pci: tuple[dict[str, Any], ...] = ()
    """NVIDIA cards on the bus: ``pci``, ``answers`` (False: reads as all ones), ``driver``."""
    proc_gpus: tuple[str, ...] = ()
    """Addresses that the loaded driver knows."""
    uuids: dict[str, str] = {}  # noqa: RUF012 - never changed
    """UUID by address, as the loaded driver tells it."""
    driver_version: str = ""
    """Version of the loaded kernel module."""
    nvidiactl_errno: int | None = None
    """0: the driver's device opens; None: there is none."""
    stuck: tuple[dict[str, Any], ...] = ()
    """Processes in state D: ``pid``, ``name``, ``state``, and ``wchan``, where each waits."""
    in_container: bool = False

    @property
    def any_gpu(self) -> bool:
        """Whether anything here speaks of an NVIDIA GPU."""
        return bool(self.gpu_nodes or self.pci or self.proc_gpus or self.driver_version)

    @property
    def gpu_nodes(self) -> tuple[str, ...]:
        """Device files of single GPUs."""
        return tuple(name for name in self.nodes if name[-1:].isdigit())

    @property
    def stuck_at_driver(self) -> tuple[dict[str, Any], ...]:
        """Those of them whose name says that they are the driver's, or may be calling it."""
        return tuple(one for one in self.stuck if _AT_DRIVER.match(str(one["name"])))

    @property
    def off_the_bus(self) -> tuple[str, ...]:
        """Addresses of cards that no longer answer on the bus."""
        return tuple(normal_bdf(str(one["pci"])) for one in self.pci if one["answers"] is False)

    @property
    def devices_denied(self) -> bool:
        """Whether opening the driver's device is refused: what a lost device cgroup does."""
        return self.nvidiactl_errno in (errno.EPERM, errno.EACCES)


def look(host: HostPaths, *, deadline_seconds: float) -> HostFiles:
    """Read everything that can be read in time."""
    argv = command(host, "host_child", host.dev, host.proc, host.sys)
    outcome = bounded.run(argv, deadline_seconds=deadline_seconds)
    lines = objects(outcome)
    said = {key: value for line in lines if "gpu" not in line for key, value in line.items()}
    return HostFiles(
        finished="done" in said,
        hung_at=doing(lines) if outcome.hung and doing(lines) != STARTING else "",
        unkillable=outcome.unkillable,
        nodes=tuple(said.get("nodes", ())),
        pci=tuple(said.get("pci", ())),
        proc_gpus=tuple(normal_bdf(address) for address in said.get("proc_gpus", ())),
        uuids={normal_bdf(one["gpu"]): one["uuid"] for one in lines if one.get("uuid")},
        driver_version=said.get("driver_version", ""),
        nvidiactl_errno=said.get("nvidiactl_errno"),
        stuck=tuple(said.get("stuck", ())),
        in_container=said.get("container", False),
    )
