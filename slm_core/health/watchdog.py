"""Watches the GPUs of one run, in a process of its own: kernel log at once, NVML by a child.

``python -m slm_core.health.watchdog CONFIG_JSON`` is started by the doctor. What it sees goes
to ``sightings.jsonl``; the last minutes of vital signs stay in memory and are written when
something grave is found, and at the end. After an Xid 79, 119 or 120, a card off the bus, or a
fatal UVM error no call goes into the driver any more. The doctor only ever reads files, so
that nothing here can block it; and this process ends with the one that started it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic import BaseModel, ConfigDict

from slm_core.health import host_files, kernel_log
from slm_core.health.host import HostPaths
from slm_core.health.identity import Devices
from slm_core.health.kernel_lines import GSP, OFF_BUS, KernelEvent
from slm_core.health.nvml_watch import NvmlWatch
from slm_core.health.pci import normal_bdf
from slm_core.health.sightings import (
    FaultKind,
    Sighting,
    SightingsFile,
    Source,
    fault_of,
    fault_of_xid,
    is_urgent,
    stops_nvml,
)
from slm_core.system.durable import replace_file
from slm_core.system.parent import die_with_parent

SIGHTINGS = "sightings.jsonl"
TELEMETRY = "telemetry.jsonl"
DEVICES = "devices.json"
_XID_EVENT = 0x8
_LOOK_SECONDS = 0.2
_TRUSTED_DELAY_SECONDS = 60.0


class WatchConfig(BaseModel):
    """What the doctor tells its watchdog, as one argument."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path
    gpus: tuple[str, ...]
    parent: int
    began_at: datetime
    kernel_log: Path | None
    kmsg: Path
    journalctl: str
    proc: Path
    sys: Path
    dev: Path
    python: str
    kernel_poll_seconds: float
    nvml_pause_seconds: float
    nvml_deadline_seconds: float
    files_seconds: float
    ring_seconds: float

    @property
    def host(self) -> HostPaths:
        """The machine to watch."""
        return HostPaths(
            kernel_log=self.kernel_log,
            kmsg=self.kmsg,
            journalctl=self.journalctl,
            proc=self.proc,
            sys=self.sys,
            dev=self.dev,
            python=self.python,
        )


class Watchdog:
    """Two threads that look, and a main thread that never touches anything that can hang."""

    def __init__(self, config: WatchConfig) -> None:
        self._config = config
        self._host = config.host
        self._boot_id = self._host.boot_id()
        self._sightings = SightingsFile(config.folder / SIGHTINGS)
        self._stop = threading.Event()
        self._failed = False
        self._devices = Devices()
        self._seen: set[tuple[str, float | None]] = set()
        self._bad: set[tuple[str, int]] = set()
        ring = max(1, round(config.ring_seconds / config.nvml_pause_seconds))
        self._ring: deque[dict[str, Any]] = deque(maxlen=ring * max(1, len(config.gpus)))
        self._nvml = NvmlWatch(
            self._host,
            pause_seconds=config.nvml_pause_seconds,
            deadline_seconds=config.nvml_deadline_seconds,
            on_line=self._on_nvml,
            on_hang=self._on_hang,
        )

    def run(self) -> int:
        """Watch until told to stop, or until the parent is gone; return the exit code.

        It is not 0 when a thread failed: half a watch would pass for a whole one, so the doctor
        is to start another.
        """
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        # Before anything slow: a line written from now on is not missed.
        events = kernel_log.follow(
            self._host, stop=self._stop, poll_seconds=self._config.kernel_poll_seconds
        )
        self._add("watchdog", "started", text=f"pid {os.getpid()}")
        self._start("kernel_log", lambda: self._watch_kernel(events))
        self._start("nvml", self._watch_driver)
        while not self._stop.wait(_LOOK_SECONDS):
            if os.getppid() != self._config.parent:
                break
        self._stop.set()
        self._nvml.stop_for_good()
        self._dump_ring()
        time.sleep(_LOOK_SECONDS)  # for the threads to end their children
        return 1 if self._failed else 0

    def _start(self, source: Source, look: Callable[[], None]) -> None:
        def work() -> None:
            try:
                look()
            except Exception as error:
                traceback.print_exc()  # the doctor keeps it in watchdog.log
                self._add(source, "blind", text=f"{type(error).__name__}: {error}")
                self._failed = True
                self._stop.set()

        threading.Thread(target=work, daemon=True).start()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stop.set()

    def _watch_kernel(self, events: Any) -> None:
        before = kernel_log.read(self._host, since=self._config.began_at)
        if not before.tier_available:
            self._add("kernel_log", "blind", text=before.problem or "")
        for event in before.events:
            # What is older than the run is known to whoever chose these GPUs.
            if event.at is not None and event.at >= self._config.began_at:
                self._on_kernel(event)
        for event in events:
            self._on_kernel(event)
        if not self._stop.is_set():
            self._add("kernel_log", "blind", text="the kernel log can no longer be followed")

    def _on_kernel(self, event: KernelEvent) -> None:
        mark = (event.text, event.monotonic_seconds)
        if mark in self._seen and event.monotonic_seconds is not None:
            return
        self._seen.add(mark)
        if stops_nvml(event):
            self._nvml.stop_for_good()  # before anything else
        fault = fault_of(event, self._devices, self._config.gpus)
        now = time.monotonic()
        name = None if event.pci is None else self._devices.name(event.pci)
        self._add(
            "kernel_log",
            event.kind,
            gpu=name,
            code=event.code,
            text=event.text,
            fault=fault,
            urgent=is_urgent(event),
            since=_moment(event, now),
        )
        if stops_nvml(event):
            self._add("watchdog", "stopped", text="no further call to NVML")
        if fault:
            self._dump_ring()

    def _watch_driver(self) -> None:
        # The driver's files first: they name the cards even where NVML does not start.
        files = host_files.look(self._host, deadline_seconds=self._config.files_seconds)
        self._know(Devices(uuids=files.uuids).joined(self._devices))
        self._nvml.run()

    def _know(self, devices: Devices) -> None:
        self._devices = devices
        with contextlib.suppress(OSError):
            replace_file(self._config.folder / DEVICES, devices.model_dump_json().encode() + b"\n")

    def _on_nvml(self, line: dict[str, Any]) -> None:
        if uuid := line.get("signs"):
            self._ring.append({"wall_time": time.time(), **line})
            if code := line.get("bad"):
                self._on_bad(str(uuid), int(code), str(line.get("words", "")))
        elif line.get("event") == _XID_EVENT:
            self._on_xid(line.get("uuid"), int(line["data"]))
        elif "pci" in line:
            uuid, pci = str(line["gpu"]), normal_bdf(str(line["pci"]))
            slices = {uuid: tuple(line["slices"])} if line.get("slices") else {}
            known = Devices(uuids={pci: uuid}, slices=slices)
            self._know(self._devices.joined(known))
        elif line.get("init") or line.get("wait") or line.get("handle"):
            code = int(line.get("init") or line.get("wait") or line.get("handle") or 0)
            if ("", code) not in self._bad:  # said once, however often it is tried
                self._bad.add(("", code))
                self._add("nvml", "error", code=code, text=str(line.get("words", "")))
        elif "events" in line:
            kind, text = ("events", "") if line["events"] else ("blind", "no NVML events")
            self._add("nvml", kind, text=f"{text} {line.get('words', '')}".strip())

    def _on_bad(self, uuid: str, code: int, words: str) -> None:
        """A card for which NVML says lost, not found or "needs a reset"; said once."""
        if (uuid, code) in self._bad:
            return
        self._bad.add((uuid, code))
        ours = bool(self._devices.of_run(uuid, self._config.gpus))
        fault: FaultKind = "cuda_error" if code == 16 else "gpu_lost"
        self._nvml.stop_for_good()
        found = fault if ours else None
        self._add("nvml", "lost", gpu=uuid, code=code, text=words, fault=found, urgent=code != 16)
        self._dump_ring()

    def _on_xid(self, uuid: str | None, code: int) -> None:
        ours = uuid is None or bool(self._devices.of_run(uuid, self._config.gpus))
        if code in (OFF_BUS, *GSP):
            self._nvml.stop_for_good()
        fault = fault_of_xid(code) if ours else None
        urgent = code in (OFF_BUS, *GSP)
        text = f"NVML event: Xid {code}"
        self._add("nvml", "xid", gpu=uuid, code=code, text=text, fault=fault, urgent=urgent)

    def _on_hang(self, doing: str, last_life: float, unkillable: bool) -> None:
        held = ", and the process cannot be killed" if unkillable else ""
        text = f"NVML does not return from: {doing}{held}"
        kind = "unkillable" if unkillable else "hung"
        self._add("nvml", kind, text=text, fault="driver_hung", urgent=True, since=last_life)
        self._dump_ring()

    def _add(
        self,
        source: Source,
        kind: str,
        *,
        gpu: str | None = None,
        code: int | None = None,
        text: str = "",
        fault: FaultKind | None = None,
        urgent: bool = False,
        since: float | None = None,
    ) -> None:
        sighting = Sighting(
            wall_time=time.time(),
            monotonic_seconds=time.monotonic(),
            boot_id=self._boot_id,
            source=source,
            kind=kind,
            gpu=gpu,
            code=code,
            text=text,
            fault=fault,
            urgent=urgent,
            since_seconds=since,
        )
        # On a full disk the watch goes on; the next sighting may find room.
        with contextlib.suppress(OSError):
            self._sightings.add(sighting)

    def _dump_ring(self) -> None:
        lines = "".join(json.dumps(signs) + "\n" for signs in list(self._ring))
        with contextlib.suppress(OSError):
            replace_file(self._config.folder / TELEMETRY, lines.encode())


def _moment(event: KernelEvent, now: float) -> float:
    """Return the monotonic time of a line; of one that makes no sense, the time it was read."""
    if event.at is None:
        return now
    delay = (datetime.now(UTC) - event.at) / timedelta(seconds=1)
    return now - delay if 0 <= delay <= _TRUSTED_DELAY_SECONDS else now


if __name__ == "__main__":
    # A termination and not a kill: the vital signs are worth a write, and that takes no time.
    die_with_parent(signal.SIGTERM)
    exit_code = Watchdog(WatchConfig.model_validate_json(sys.argv[1])).run()
    # Threads may sit in a read that never returns; nothing is left to wait for.
    os._exit(exit_code)
