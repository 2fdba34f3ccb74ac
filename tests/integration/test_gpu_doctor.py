"""A worker dies at a GPU, from the last step it took to the verdict: real processes throughout.

The machine is a folder, the driver a library of our own, and CUDA's test a script; watchdog,
children, parsing, triage, bundle and ledger are the real ones.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slm_core.health.doctor import GpuDoctor
from slm_core.health.host import HostPaths
from slm_core.health.ledger import Ledger
from slm_core.health.spec import HealthSpec
from slm_core.health.watch_spec import WatchSpec
from slm_core.health.watchdog import SIGHTINGS
from slm_core.records import EvidenceTier, Fault, NextAction
from slm_core.testing.fake_cuda import fake_cuda, gpus_tried
from slm_core.testing.fake_driver import FakeDriver, FakeMachine

pytestmark = pytest.mark.integration

GPUS = tuple(FakeDriver.uuid(index) for index in range(4))
XID_79 = "NVRM: Xid (PCI:0000:42:00): 79, pid=77, name=python, GPU has fallen off the bus."
OFF = "NVRM: GPU 0000:42:00.0: GPU has fallen off the bus."
XID_45 = "NVRM: Xid (PCI:0000:41:00): 45, pid=77, name=python, Ch 00000008"
UVM = (
    "NVRM: nvGpuOpsReportFatalError: uvm encountered global fatal error 0x60, requiring os "
    "reboot to recover."
)


def asked(index: int, action: str) -> str:
    pci = FakeDriver.pci(index).removesuffix(".0")
    return f"NVRM: Xid (PCI:{pci}): 154, GPU recovery action changed from 0x0 (None) to {action}"


WORKER = """
import sys, time
for step in range(1, 22):
    print(f"step {step}/21 loss 1.0", flush=True)
    if step == 3:
        raise RuntimeError("CUDA error: unknown error")
    time.sleep(0.05)
"""


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    driver = FakeDriver(tmp_path / "lib")
    driver.set(count=4)
    for name, value in driver.environment.items():
        monkeypatch.setenv(name, value)
    return driver


@pytest.fixture
def machine(tmp_path: Path, driver: FakeDriver) -> FakeMachine:
    machine = FakeMachine(tmp_path / "machine", gpus=4)
    machine.nvidia_smi(4)
    return machine


def doctor_of(machine: FakeMachine, host: HostPaths, **limits: Any) -> GpuDoctor:
    watch = WatchSpec(nvml_pause_seconds=0.2, smi_seconds=4.0, **limits)
    spec = HealthSpec(cuda_seconds=10.0)
    ledger = machine.folder / "ledger.json"
    return GpuDoctor(host, machine.folder / "run", spec, watch, job="run-1", ledger=ledger)


def wait_for(question: Callable[[], Any], seconds: float = 30.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (answer := question()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
    return answer


def watching(machine: FakeMachine) -> bool:
    """Whether the watchdog follows the log and has heard from NVML."""
    path = machine.folder / "run" / SIGHTINGS
    return path.exists() and '"events"' in path.read_text()


def incident(machine: FakeMachine, driver: FakeDriver, *, uvm: bool) -> tuple[str, Fault]:
    """Let a worker die at step 3 of 21, and the driver go down; return its last words."""
    worker = subprocess.run([sys.executable, "-c", WORKER], capture_output=True, text=True)
    driver.set(init=999)
    machine.take_off_the_bus(1)
    moment = time.monotonic()
    lines = [XID_79, OFF, XID_45]
    if uvm:
        lines += [UVM, *(asked(index, "0x2 (Node Reboot Required)") for index in range(4))]
    else:
        lines += [asked(1, "0x1 (GPU Reset Required)")]
    machine.log(*lines, seconds=moment)
    words = worker.stdout + worker.stderr + "Failed to initialize NVML: Unknown Error\n"
    return words, Fault(
        kind="worker_crashed",
        message=worker.stderr.strip().splitlines()[-1],
        step=3,
        exit_code=worker.returncode,
    )


def test_the_incident_ends_in_a_reboot_and_says_why(
    machine: FakeMachine, driver: FakeDriver
) -> None:
    doctor = doctor_of(machine, fake_cuda(machine, broken=(0, 1, 2, 3)))
    with doctor.watch(GPUS):
        wait_for(lambda: watching(machine))
        words, fault = incident(machine, driver, uvm=True)
        began = time.monotonic()
        alarm = wait_for(doctor.alarm)
        assert time.monotonic() - began < 1.0
        assert alarm.kind == "gpu_lost"
    began = time.monotonic()
    verdict = doctor.examine(fault, words, GPUS)
    assert time.monotonic() - began < 15
    assert verdict.action is NextAction.REBOOT
    assert UVM in verdict.facts
    assert XID_79 in verdict.facts
    assert verdict.sick == (GPUS[1],)
    assert verdict.survivors == ()
    assert verdict.commands == ("sudo reboot",)
    assert verdict.tier is EvidenceTier.KERNEL_LOG
    assert gpus_tried(machine) == set(), "nothing more was asked of a dead driver"
    ledger = Ledger(machine.folder / "ledger.json")
    pending = ledger.pending_reboot(machine.host.boot_id())
    assert pending is not None
    assert pending.gpu == GPUS[1]
    machine.set_boot_id("after-the-reboot")
    assert ledger.pending_reboot(machine.host.boot_id()) is None


def test_without_the_uvm_error_one_card_is_dropped_and_the_survivors_are_named(
    machine: FakeMachine, driver: FakeDriver
) -> None:
    doctor = doctor_of(machine, fake_cuda(machine, broken=(1,)))
    with doctor.watch(GPUS):
        wait_for(lambda: watching(machine))
        words, fault = incident(machine, driver, uvm=False)
        wait_for(doctor.alarm)
    verdict = doctor.examine(fault, words, GPUS)
    assert verdict.action is NextAction.DROP_GPU
    assert verdict.sick == (GPUS[1],)
    rest = (GPUS[0], GPUS[2], GPUS[3])
    assert verdict.survivors == rest
    assert gpus_tried(machine) == set(rest)
    assert {XID_79, OFF} <= set(verdict.facts)
    assert verdict.bundle is not None
    bundle = Path(verdict.bundle)
    assert "step 3/21" in (bundle / "worker.log").read_text()
    recovery = json.loads((bundle / "recovery.json").read_text())
    assert recovery[GPUS[1]]["action"] == "gpu_reset"
    assert (bundle / "telemetry.jsonl").read_text().count("temperature") >= 1

    # The run goes on with three cards; the old loss is no news to it.
    driver.set(init=0, count=4, **{"lost.1": 1})
    with doctor.watch(rest):
        time.sleep(1.0)
        assert doctor.alarm() is None


def test_the_same_with_survivors_that_fail_is_a_reboot(
    machine: FakeMachine, driver: FakeDriver
) -> None:
    doctor = doctor_of(machine, fake_cuda(machine, broken=(0, 1, 2, 3)))
    with doctor.watch(GPUS):
        wait_for(lambda: watching(machine))
        words, fault = incident(machine, driver, uvm=False)
        wait_for(doctor.alarm)
    verdict = doctor.examine(fault, words, GPUS)
    assert verdict.action is NextAction.REBOOT
    assert any("CUDA on" in fact for fact in verdict.facts)


def test_a_hung_driver_is_found_and_holds_nobody(machine: FakeMachine, driver: FakeDriver) -> None:
    host = fake_cuda(machine, hangs=(0, 1, 2, 3))
    limits = WatchSpec(smi_seconds=3.0, nvml_deadline_seconds=2.0)
    doctor = GpuDoctor(host, machine.folder / "run", HealthSpec(cuda_seconds=3.0), limits)
    machine.nvidia_smi_in_state_d()
    with doctor.watch(GPUS):
        wait_for(lambda: watching(machine))
        driver.set(hang="nvmlDeviceGetPowerUsage")
        began = time.monotonic()
        alarm = wait_for(doctor.alarm, seconds=40)
        taken = time.monotonic() - began
    assert alarm.kind == "driver_hung"
    # Two processes are given 2 s each; as the product is set, 8 s each and the same overhead.
    assert 2 * WatchSpec().nvml_deadline_seconds + taken - 4.0 < 30
    began = time.monotonic()
    verdict = doctor.examine(alarm, "", GPUS)
    assert time.monotonic() - began < 15
    assert verdict.action is NextAction.REBOOT
    assert verdict.bundle is not None
    assert "not asked" in (Path(verdict.bundle) / "nvidia-smi-q.txt").read_text()
