"""Every fault that we can inject without broken hardware, and what the product makes of it.

    python -m benchmarks.fault_matrix [--only WORD] [--json FILE]

One row per fault: what was injected, what was detected, after how long, what was done, and what
was lost. A row is right or the table says WRONG and the command ends with status 1. The machine
is a folder with a kernel log, the driver a small C library that the real nvidia-ml-py loads, and
CUDA's test a script; all that looks, judges and writes is the product. Needs a C compiler. A
module ``benchmarks.fault_matrix_training`` with a list ``ROWS`` of its own adds rows.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from slm_core.health.doctor import GpuDoctor
from slm_core.health.spec import HealthSpec
from slm_core.health.watch_spec import WatchSpec
from slm_core.health.watchdog import SIGHTINGS
from slm_core.records import Fault, Triage
from slm_core.testing.fake_cuda import fake_cuda
from slm_core.testing.fake_driver import FakeDriver, FakeMachine

GPUS = tuple(FakeDriver.uuid(index) for index in range(4))
TITLES = ("fault", "injected", "detected", "after", "done", "lost", "right")
SINCE_CHECKPOINT = "the steps since the newest checkpoint"


class FaultRow(NamedTuple):
    """One line of the table."""

    fault: str
    injected: str
    """How, at the lowest layer that can be reached without broken hardware."""
    detected: str
    detected_after_seconds: float | None
    done: str
    """The next action, and on which GPUs."""
    lost: str
    right: bool
    """Whether it is what should have been done."""

    def cells(self) -> tuple[str, ...]:
        """Return the row as text, in the order of ``TITLES``."""
        seconds = self.detected_after_seconds
        after = "" if seconds is None else f"{seconds:.2f} s"
        right = "yes" if self.right else "WRONG"
        found = (self.fault, self.injected, self.detected, after, self.done, self.lost, right)
        return tuple(cell.replace("|", "\\|").replace("\n", " ") for cell in found)


class Node(NamedTuple):
    """A machine with four GPUs that is not there."""

    machine: FakeMachine
    driver: FakeDriver


Row = Callable[[], FaultRow]


@contextmanager
def node() -> Any:
    """Give a fresh machine whose driver library our child processes load."""
    with tempfile.TemporaryDirectory(prefix="fault-matrix-") as folder, ExitStack() as undo:
        driver = FakeDriver(Path(folder) / "lib")
        driver.set(count=len(GPUS))
        for name, value in driver.environment.items():
            undo.callback(_put_back, name, os.environ.get(name))
            os.environ[name] = value
        machine = FakeMachine(Path(folder) / "machine", gpus=len(GPUS))
        machine.nvidia_smi(len(GPUS))
        yield Node(machine, driver)


def _put_back(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


class Case(NamedTuple):
    """One injected fault and the verdict that is right."""

    fault: str
    injected: str
    inject: Callable[[Node], None]
    action: str
    sick: tuple[int, ...] = ()
    broken: tuple[int, ...] = ()
    """GPUs on which CUDA no longer works."""
    alarm: str | None = None
    """Kind of alarm that the watchdog must raise while the worker still runs."""
    most_seconds: float = 1.0
    """Within which it must."""
    words: str = "RuntimeError: CUDA error: unknown error"


def run(case: Case) -> FaultRow:
    """Inject ``case`` into a machine that is being watched, and let the doctor examine it."""
    with node() as place:
        host = fake_cuda(place.machine, broken=case.broken)
        folder = place.machine.folder / "run"
        watch = WatchSpec(nvml_pause_seconds=0.5, smi_seconds=5.0)
        doctor = GpuDoctor(host, folder, HealthSpec(cuda_seconds=20.0), watch)
        with doctor.watch(GPUS):
            _wait(lambda: _is_watching(folder), 60.0)
            began = time.monotonic()
            case.inject(place)
            alarm = None
            if case.alarm:
                alarm = _wait(doctor.alarm, case.most_seconds + 10.0)
            elif not _wait(lambda: _has_kernel_line(folder), 2.0):
                began = time.monotonic()
            seconds = time.monotonic() - began
        fault = alarm or Fault(kind="cuda_error", message=case.words, step=3)
        began = time.monotonic()
        verdict = doctor.examine(fault, case.words, GPUS)
        if not case.alarm and not _has_kernel_line(folder):
            seconds = time.monotonic() - began  # found only by the examination
        return _row(case, alarm, verdict, seconds)


def _row(case: Case, alarm: Fault | None, verdict: Triage, seconds: float) -> FaultRow:
    sick = tuple(GPUS.index(gpu) for gpu in verdict.sick if gpu in GPUS)
    right = (verdict.action, sick) == (case.action, case.sick)
    if case.alarm:
        right = right and alarm is not None and alarm.kind == case.alarm
        right = right and seconds <= case.most_seconds
    which = f" (GPU {', '.join(map(str, sick))})" if sick else ""
    detected = f"{alarm.kind}: {alarm.message}" if alarm else verdict.reason
    goes_on = verdict.action in ("resume", "drop_gpu")
    lost = SINCE_CHECKPOINT + ("" if goes_on else ", and the time until a person acts")
    done = f"{verdict.action}{which}"
    return FaultRow(case.fault, case.injected, detected[:140], seconds, done, lost, right)


def _is_watching(folder: Path) -> bool:
    path = folder / SIGHTINGS
    return path.exists() and '"events"' in path.read_text()


def _has_kernel_line(folder: Path) -> bool:
    return '"kernel_log"' in (folder / SIGHTINGS).read_text()


def _wait(question: Callable[[], Any], seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while not (answer := question()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return answer


def lines(*messages: str) -> Callable[[Node], None]:
    """Let the kernel write ``messages``."""
    return lambda place: place.machine.log(*messages)


def library(**answers: Any) -> Callable[[Node], None]:
    """Let the driver library answer otherwise."""
    return lambda place: place.driver.set(**answers)


PCI = "PCI:0000:42:00"
XID_79 = f"NVRM: Xid ({PCI}): 79, pid=77, name=python, GPU has fallen off the bus."
UVM = (
    "NVRM: nvGpuOpsReportFatalError: uvm encountered global fatal error 0x60, requiring os "
    "reboot to recover."
)


def asked(index: int, action: str) -> str:
    """Return the line in which the driver says what a GPU needs."""
    pci = FakeDriver.pci(index).removesuffix(".0")
    return f"NVRM: Xid (PCI:{pci}): 154, GPU recovery action changed from {action}"


def _cut_off(place: Node) -> None:
    place.driver.set(init=999)
    place.machine.deny_devices()


def _stuck_smi(place: Node) -> None:
    place.machine.nvidia_smi_in_state_d()


def _incident(*messages: str) -> Callable[[Node], None]:
    def inject(place: Node) -> None:
        place.driver.set(init=999)
        place.machine.take_off_the_bus(1)
        place.machine.log(XID_79, "NVRM: GPU 0000:42:00.0: GPU has fallen off the bus.", *messages)

    return inject


NODE_REBOOT = "0x0 (None) to 0x2 (Node Reboot Required)"
ALL_BROKEN = (0, 1, 2, 3)
CASES: tuple[Case, ...] = (
    # The driver library.
    Case("GPU lost, as NVML sees it", "library: every call on GPU 1 gives 15",
         library(**{"lost.1": 1}), "drop_gpu", (1,), (1,), "gpu_lost", 5.0),
    Case("NVML 999, devices refused", "library: init gives 999; /dev/nvidiactl refuses",
         _cut_off, "recreate_container", broken=ALL_BROKEN),
    Case("NVML 999, devices open", "library: init gives 999", library(init=999), "reboot",
         ALL_BROKEN, ALL_BROKEN),
    Case("driver upgraded under a running module", "library: init gives 18", library(init=18),
         "reload_driver", broken=ALL_BROKEN),
    Case("kernel module gone", "library: init gives 9", library(init=9), "reload_driver",
         broken=ALL_BROKEN),
    Case("driver hangs, CUDA too", "library: a call never returns",
         library(hang="nvmlDeviceGetTemperature"), "reboot", ALL_BROKEN, ALL_BROKEN,
         "driver_hung", 30.0),
    Case("driver hangs, CUDA works", "library: a call never returns",
         library(hang="nvmlDeviceGetTemperature"), "reset_gpu", (), (), "driver_hung", 30.0),
    Case("nvidia-smi in state D", "a program that sleeps uninterruptibly", _stuck_smi, "resume"),
    Case("NVML answers, CUDA does not", "CUDA's test fails on all GPUs", lambda _: None, "reboot",
         (), ALL_BROKEN),
    # The kernel log, in each shape that the driver writes.
    Case("Xid 79", XID_79, lines(XID_79), "drop_gpu", (1,), (1,), "gpu_lost"),
    Case("Xid 79, no process", "pid='<unknown>'",
         lines(f"NVRM: Xid ({PCI}): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the "
               "bus."), "drop_gpu", (1,), (1,), "gpu_lost"),
    Case("lost without an Xid", "NVRM: GPU ...: GPU has fallen off the bus.",
         lines("NVRM: GPU 0000:42:00.0: GPU has fallen off the bus."), "drop_gpu", (1,), (1,),
         "gpu_lost"),
    Case("lost, told over three lines", "The NVIDIA GPU ... / ... / fallen off the bus and is not",
         lines("NVRM: The NVIDIA GPU 0000:42:00.0", "NVRM: (PCI ID: 10de:2204) installed in this "
               "system has", "NVRM: fallen off the bus and is not responding to commands."),
         "drop_gpu", (1,), (1,), "gpu_lost"),
    Case("old driver's Xid", "Xid (0000:42:00): 14, without PCI:",
         lines("NVRM: Xid (0000:42:00): 14, Channel 00000001"), "contact_vendor"),
    Case("Xid 94 of a MIG slice", "GPU-I:05",
         lines(f"NVRM: Xid ({PCI} GPU-I:05): 94, pid=7, name=python, Contained: SM (0x1)."),
         "resume"),
    Case("Xid 43 of a MIG slice", "GPU-I:05 GPU-CI:01",
         lines(f"NVRM: Xid ({PCI} GPU-I:05 GPU-CI:01): 43, pid=1, name=x, Ch 8"), "resume"),
    Case("Xid 45 after another", "caused by previous Xid 64",
         lines(f"NVRM: Xid ({PCI}): 64, Row remapper failure",
               f"NVRM: Xid ({PCI}): 45, pid=10, Ch 8 caused by previous Xid 64"), "reset_gpu",
         (1,)),
    Case("Xid 154, with a number", NODE_REBOOT, lines(asked(1, NODE_REBOOT)), "reboot", (1,),
         (), "cuda_error"),
    Case("Xid 154, words only", "None to Node Reboot Required",
         lines(asked(1, "None to Node Reboot Required")), "reboot", (1,), (), "cuda_error"),
    Case("fatal UVM error", UVM, lines(UVM), "reboot", (), (), "cuda_error"),
    Case("fatal UVM error, the module's words", "nvidia-uvm: Encountered a global fatal error",
         lines("nvidia-uvm: Encountered a global fatal error: NV_ERR_RC_ERROR"), "reboot", (), (),
         "cuda_error"),
    Case("a GPU waits for a reset", "NV_ERR_RESET_REQUIRED",
         lines("NVRM: nvAssertOkFailedNoLog: Assertion failed: Reset required "
               "[NV_ERR_RESET_REQUIRED] (0x00000062) returned from status @ kernel_channel.c:2874"),
         "drop_gpu", (3,), (3,)),
    Case("NVSwitch, fatal", "SXid 24007, Fatal",
         lines("nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 24007, Fatal, Link 44"), "reset_gpu",
         ALL_BROKEN),
    Case("PCIe corrected errors", "pcieport ... AER: Corrected error",
         lines("pcieport 0000:40:01.1: AER: Corrected error received: 0000:40:01.1"), "resume"),
    Case("Xid 149, another machine's domain", "PCI:0018:01:00, none of ours",
         lines("NVRM: Xid (PCI:0018:01:00): 149, NETIR_LINK_EVT Fatal XC0 i0 Link 08"), "resume"),
    Case("Xid 119, firmware", "Xid 119",
         lines(f"NVRM: Xid ({PCI}): 119, pid=1, Timeout after 45s of waiting for RPC response"),
         "reset_gpu", (1,), (), "driver_hung"),
    Case("Xid 31, a program's error", "Xid 31",
         lines(f"NVRM: Xid ({PCI}): 31, pid=1, name=python, MMU Fault"), "resume",
         words="CUDA error: an illegal memory access was encountered"),
    Case("an Xid that nobody knows", "Xid 9999", lines(f"NVRM: Xid ({PCI}): 9999, news"),
         "contact_vendor"),
    # One lost GPU that takes the machine down, and one that does not.
    Case("the incident", "Xid 79, NVML 999, UVM, Xid 154 on every GPU",
         _incident(UVM, *(asked(index, NODE_REBOOT) for index in range(4))), "reboot", (1,),
         ALL_BROKEN, "gpu_lost"),
    Case("the incident, contained", "Xid 79, NVML 999, no UVM; CUDA works on the other GPUs",
         _incident(asked(1, "0x0 (None) to 0x1 (GPU Reset Required)")), "drop_gpu", (1,), (1,),
         "gpu_lost"),
)  # fmt: skip
ROWS: list[Row] = [lambda case=case: run(case) for case in CASES]


def all_rows() -> list[Row]:
    """Return our rows, and those of training where that module exists."""
    name = "benchmarks.fault_matrix_training"
    if importlib.util.find_spec(name) is None:
        return ROWS
    return [*ROWS, *importlib.import_module(name).ROWS]


def main() -> int:
    """Run the matrix and print it as a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="rows of the first table whose name has this")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    wanted = parser.parse_args()
    chosen = all_rows()
    if wanted.only:
        chosen = [
            lambda case=case: run(case)
            for case in CASES
            if wanted.only.lower() in case.fault.lower()
        ]
    print("| " + " | ".join(TITLES) + " |")
    print("| --- | --- | --- | --: | --- | --- | --- |")
    found: list[FaultRow] = []
    for row in chosen:
        found.append(row())
        print("| " + " | ".join(found[-1].cells()) + " |", flush=True)
    wrong = [row.fault for row in found if not row.right]
    print(f"\n{len(found)} faults, {len(wrong)} wrong{': ' + ', '.join(wrong) if wrong else ''}")
    if wanted.json:
        wanted.json.write_text(json.dumps([row._asdict() for row in found], indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
