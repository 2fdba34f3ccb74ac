"""What the watchdog saw: one JSON line each, and which of them end a run at once.

Only what a worker cannot notice by itself ends it: a card that is gone, a driver that does not
return, a machine that needs a reboot or a card that needs a reset. After an Xid that is the
program's own fault, CUDA gives that program an error within milliseconds; to stop it from
outside would lose its own words, and would punish it for the fault of a neighbour.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from slm_core.health import xids
from slm_core.health.identity import Devices
from slm_core.health.kernel_lines import GSP, OFF_BUS, KernelEvent

FaultKind = Literal["gpu_lost", "driver_hung", "cuda_error"]
Source = Literal["kernel_log", "nvml", "watchdog"]
_GO_ON = frozenset({63, 64, 94, 156})
"""Memory errors that are fenced off, or whose victim is told by CUDA."""
_REBOOTS = ("node_reboot", "system_reboot")
_RESETS = ("gpu_reset", "bus_reset", "drain_and_reset")


class Sighting(BaseModel):
    """One observation, with both clocks and the boot it belongs to."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    wall_time: float
    monotonic_seconds: float
    """When it was noticed."""
    boot_id: str
    source: Source
    kind: str
    """Kind of kernel event, or ``hung``, ``unkillable``, ``error``, ``lost``, ``stopped``,
    ``started``, ``blind``, ``events``."""
    gpu: str | None = None
    """UUID, or PCI address where no UUID is known."""
    code: int | None = None
    text: str = ""
    fault: FaultKind | None = None
    """Set when the run must end."""
    urgent: bool = False
    """The worker could wait for ever: end it without waiting for its own words."""
    since_seconds: float | None = None
    """Monotonic time of the event itself, or of the last sign of life before it."""


class SightingsFile:
    """Appends sightings, whole lines only; several threads may write."""

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(path, flags, 0o644)

    def add(self, sighting: Sighting) -> None:
        """Write one line; a fatal one is on disk when this returns."""
        os.write(self._file, (sighting.model_dump_json(exclude_none=True) + "\n").encode())
        if sighting.fault:
            os.fsync(self._file)


class SightingsReader:
    """Reads what was added since the last look, without ever waiting for it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._position = path.stat().st_size  # what an earlier watch found is not news
        except OSError:
            self._position = 0

    def new(self) -> list[Sighting]:
        """Return the sightings whose lines have come since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._position)
                added = file.read()
        except OSError:
            return []
        whole = added[: added.rfind(b"\n") + 1]
        self._position += len(whole)
        found: list[Sighting] = []
        for line in whole.splitlines():
            try:
                found.append(Sighting.model_validate_json(line))
            except ValidationError:
                continue
        return found


def stops_nvml(event: KernelEvent) -> bool:
    """Whether no call may go into the driver any more: each could hang for ever."""
    if event.kind in ("uvm_fatal", "off_bus"):
        return True
    return event.kind == "xid" and event.code in (OFF_BUS, *GSP)


def fault_of(event: KernelEvent, devices: Devices, gpus: tuple[str, ...]) -> FaultKind | None:
    """Return what a run on ``gpus`` must end with because of ``event``, or None."""
    if event.kind == "uvm_fatal" or event.action in _REBOOTS:
        return "cuda_error"  # on every card of the machine
    if event.pci is not None and not devices.of_run(event.pci, gpus):
        return None
    if event.kind == "off_bus":
        return "gpu_lost"
    if event.kind == "recovery":
        return "cuda_error" if event.action in _RESETS else None
    return fault_of_xid(event.code) if event.kind == "xid" and event.code is not None else None


def fault_of_xid(code: int) -> FaultKind | None:
    """Return what an Xid on one of the run's GPUs ends the run with, or None."""
    if code == OFF_BUS:
        return "gpu_lost"
    if code in GSP:
        return "driver_hung"
    if code not in _GO_ON and xids.get(code).action in ("reset_gpu", "reboot_node"):
        return "cuda_error"
    return None


def is_urgent(event: KernelEvent) -> bool:
    """Whether the worker may never get an error of its own."""
    return stops_nvml(event) or event.action in _REBOOTS
