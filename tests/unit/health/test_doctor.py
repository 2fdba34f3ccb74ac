"""The doctor on a machine that is not there: verdicts, bounded time, memory over jobs."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slm_core.health.doctor import GpuDoctor
from slm_core.health.host import HostPaths
from slm_core.health.ledger import Ledger
from slm_core.health.spec import HealthSpec
from slm_core.health.watch_spec import WatchSpec
from slm_core.records import EvidenceTier, Fault, NextAction
from slm_core.testing.fake_cuda import fake_cuda, gpus_tried
from slm_core.testing.fake_driver import FakeDriver, FakeMachine

GPUS = tuple(FakeDriver.uuid(index) for index in range(4))
LOST = "NVRM: Xid (PCI:0000:42:00): 79, pid=1, name=python, GPU has fallen off the bus."
UVM = (
    "NVRM: nvGpuOpsReportFatalError: uvm encountered global fatal error 0x60, requiring os "
    "reboot to recover."
)
FAULT = Fault(kind="cuda_error", message="CUDA error: unknown error", step=3)
EXAMINE = """
import json, pickle, sys
from pathlib import Path
from slm_core.health.doctor import GpuDoctor
host, folder, fault, gpus = pickle.load(sys.stdin.buffer)
verdict = GpuDoctor(host, folder).examine(fault, "", gpus)
maps = Path("/proc/self/maps").read_text()
libraries = [name for name in ("libnvidia-ml", "libcuda") if name in maps]
modules = [name for name in ("pynvml", "torch") if name in sys.modules]
print(json.dumps([verdict.action.value, libraries + modules]))
"""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FakeDriver(tmp_path_factory.mktemp("driver") / "lib").folder


@pytest.fixture
def driver(library: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    driver = FakeDriver(library)
    driver.set(count=4)
    for name, value in driver.environment.items():
        monkeypatch.setenv(name, value)
    return driver


@pytest.fixture
def machine(tmp_path: Path, driver: FakeDriver) -> FakeMachine:
    machine = FakeMachine(tmp_path / "machine", gpus=4)
    machine.nvidia_smi(4)
    return machine


def doctor(
    machine: FakeMachine,
    host: HostPaths,
    *,
    job: str = "job-1",
    seconds: float = 4.0,
    nvml_seconds: float = 8.0,
) -> GpuDoctor:
    watch = WatchSpec(smi_seconds=seconds, nvml_deadline_seconds=nvml_seconds)
    # This machine may have been booted a minute ago; the first second of it is the past.
    spec = HealthSpec(cuda_seconds=seconds, recent_seconds=now() / 2)
    ledger = machine.folder / "ledger.json"
    return GpuDoctor(host, machine.folder / job, spec, watch, job=job, ledger=ledger)


def now() -> float:
    return time.monotonic()


def test_nothing_wrong_is_resume_and_every_card_was_tried(machine: FakeMachine) -> None:
    verdict = doctor(machine, fake_cuda(machine)).examine(FAULT, "Killed", GPUS)
    assert verdict.action is NextAction.RESUME
    assert set(verdict.survivors) == set(GPUS) == gpus_tried(machine)
    assert verdict.tier is EvidenceTier.KERNEL_LOG


def test_a_lost_card_is_dropped_and_never_touched(machine: FakeMachine) -> None:
    machine.log(LOST, seconds=now())
    verdict = doctor(machine, fake_cuda(machine)).examine(FAULT, "", GPUS)
    assert verdict.action is NextAction.DROP_GPU
    assert verdict.sick == (GPUS[1],)
    assert set(verdict.survivors) == gpus_tried(machine) == {GPUS[0], GPUS[2], GPUS[3]}
    assert verdict.bundle is not None
    smi = (Path(verdict.bundle) / "nvidia-smi-q.txt").read_text()
    assert "not asked" in smi
    assert LOST in smi


def test_a_fatal_uvm_error_needs_no_test(machine: FakeMachine) -> None:
    machine.log(LOST, UVM, seconds=now())
    verdict = doctor(machine, fake_cuda(machine)).examine(FAULT, "", GPUS)
    assert verdict.action is NextAction.REBOOT
    assert {LOST, UVM} <= set(verdict.facts)
    assert gpus_tried(machine) == set()
    (entry,) = Ledger(machine.folder / "ledger.json").entries()
    assert (entry.gpu, entry.action, entry.xids) == (GPUS[1], NextAction.REBOOT, (79,))
    assert entry.bundle == verdict.bundle


def test_a_reboot_that_no_card_is_the_reason_for_is_remembered_too(machine: FakeMachine) -> None:
    """Xid 45 says only that a program ended; the card that reports it is no suspect."""
    machine.log("NVRM: Xid (PCI:0000:42:00): 45, pid=77, Ch 00000008", UVM, seconds=now())
    one = doctor(machine, fake_cuda(machine))
    assert one.examine(FAULT, "", GPUS).action is NextAction.REBOOT
    found = {entry.gpu: (entry.action, entry.xids) for entry in one.ledger.entries()}
    assert found == {GPUS[1]: (NextAction.RESUME, (45,)), None: (NextAction.REBOOT, ())}
    assert one.ledger.pending_reboot(machine.host.boot_id()) is not None


def test_state_counts_for_the_whole_boot_and_an_xid_does_not(machine: FakeMachine) -> None:
    machine.log("NVRM: Xid (PCI:0000:42:00): 64, pid=1, Row remapper failure", seconds=1.0)
    assert doctor(machine, fake_cuda(machine)).examine(FAULT, "", GPUS).action is NextAction.RESUME
    machine.log(UVM, seconds=1.0)
    assert doctor(machine, fake_cuda(machine)).examine(FAULT, "", GPUS).action is NextAction.REBOOT


def test_a_card_that_an_earlier_attempt_lost_is_not_lost_again(machine: FakeMachine) -> None:
    machine.log(LOST, seconds=1.0)
    rest = (GPUS[0], GPUS[2], GPUS[3])
    machine.log("NVRM: Xid (PCI:0000:41:00): 64, pid=1, Row remapper failure", seconds=now())
    verdict = doctor(machine, fake_cuda(machine)).examine(FAULT, "", rest)
    assert (verdict.action, verdict.sick) == (NextAction.RESET_GPU, (GPUS[0],))


def test_another_jobs_card_is_none_of_ours(machine: FakeMachine) -> None:
    machine.log("NVRM: Xid (PCI:0000:44:00): 64, pid=1, Row remapper failure", seconds=now())
    verdict = doctor(machine, fake_cuda(machine)).examine(FAULT, "", GPUS[:2])
    assert verdict.action is NextAction.RESUME


def test_the_same_program_error_on_the_same_card_in_another_job(machine: FakeMachine) -> None:
    machine.log("NVRM: Xid (PCI:0000:43:00): 31, pid=1, name=python, MMU Fault", seconds=now())
    command = fake_cuda(machine)
    first = doctor(machine, command, job="job-1")
    assert first.examine(FAULT, "", GPUS).action is NextAction.RESUME
    assert first.examine(FAULT, "", GPUS).action is NextAction.RESUME
    verdict = doctor(machine, command, job="job-2").examine(FAULT, "", GPUS)
    assert (verdict.action, verdict.sick) == (NextAction.DROP_GPU, (GPUS[2],))


def test_the_third_reboot_in_a_week_is_a_persons(machine: FakeMachine) -> None:
    machine.log(LOST, UVM, seconds=now())
    actions = []
    for number in range(3):
        machine.set_boot_id(f"boot-{number}")
        verdict = doctor(machine, fake_cuda(machine)).examine(FAULT, "", GPUS)
        actions.append(verdict.action)
    assert actions == [NextAction.REBOOT, NextAction.REBOOT, NextAction.CONTACT_VENDOR]


@pytest.mark.parametrize(
    ("code", "action"),
    [(18, "reload_driver"), (9, "reload_driver"), (8, "check_power"), (999, "reboot")],
)
def test_nvml_that_does_not_start(
    machine: FakeMachine, driver: FakeDriver, code: int, action: str
) -> None:
    driver.set(init=code)
    broken = fake_cuda(machine, broken=(0, 1, 2, 3))
    verdict = doctor(machine, broken).examine(FAULT, "", GPUS)
    assert verdict.action is NextAction(action)
    assert any(str(code) in fact for fact in verdict.facts)


def test_a_container_that_lost_its_devices_is_not_rebooted(
    machine: FakeMachine, driver: FakeDriver
) -> None:
    driver.set(init=999)
    machine.deny_devices()
    words = "Failed to initialize NVML: Unknown Error"
    verdict = doctor(machine, fake_cuda(machine, broken=(0, 1, 2, 3))).examine(FAULT, words, GPUS)
    assert verdict.action is NextAction.RECREATE_CONTAINER


def test_a_lost_card_that_only_nvml_knows(machine: FakeMachine, driver: FakeDriver) -> None:
    driver.set(**{"lost.2": 1})
    verdict = doctor(machine, fake_cuda(machine)).examine(FAULT, "", GPUS)
    assert (verdict.action, verdict.sick) == (NextAction.DROP_GPU, (GPUS[2],))


def test_nvml_hangs_and_the_verdict_still_comes(machine: FakeMachine, driver: FakeDriver) -> None:
    driver.set(hang="nvmlDeviceGetCount_v2")
    began = time.monotonic()
    one = doctor(machine, fake_cuda(machine, broken=(0, 1, 2, 3)), nvml_seconds=3.0)
    verdict = one.examine(FAULT, "", GPUS)
    assert time.monotonic() - began < 10
    assert verdict.action is NextAction.REBOOT
    assert any("nvmlDeviceGetCount" in fact for fact in verdict.facts)


def test_a_card_on_which_cuda_hangs_is_left_out(machine: FakeMachine) -> None:
    command = fake_cuda(machine, hangs=(3,))
    verdict = doctor(machine, command, seconds=2.0).examine(FAULT, "", GPUS)
    assert (verdict.action, verdict.sick) == (NextAction.DROP_GPU, (GPUS[3],))


def test_nvidia_smi_in_state_d_does_not_hold_the_verdict(machine: FakeMachine) -> None:
    machine.nvidia_smi_in_state_d()
    began = time.monotonic()
    verdict = doctor(machine, fake_cuda(machine), seconds=1.0).examine(FAULT, "", GPUS)
    assert time.monotonic() - began < 10
    assert verdict.bundle is not None
    text = (Path(verdict.bundle) / "nvidia-smi-q.txt").read_text()
    assert "hung for" in text
    assert "state D" in text


def test_out_of_memory_costs_no_cuda_test(machine: FakeMachine) -> None:
    fault = Fault(kind="out_of_gpu_memory", message="CUDA out of memory")
    verdict = doctor(machine, fake_cuda(machine)).examine(fault, "CUDA out of memory", GPUS)
    assert verdict.action is NextAction.RESUME
    assert gpus_tried(machine) == set()


def test_a_cuda_test_that_cannot_start_passes_nobody(machine: FakeMachine) -> None:
    machine.log(LOST, seconds=now())
    host = fake_cuda(machine, untried=(0, 2, 3))
    verdict = doctor(machine, host).examine(FAULT, "", GPUS)
    assert verdict.action is NextAction.REBOOT
    assert verdict.survivors == ()


def test_a_run_on_slices_of_a_card(machine: FakeMachine, driver: FakeDriver) -> None:
    driver.set(**{"slices.1": 2})
    slices = tuple(f"MIG-00000000-0000-4000-8000-000001{number:06d}" for number in range(2))
    line = "NVRM: Xid (PCI:0000:42:00 GPU-I:05 GPU-CI:01): 94, pid=7, name=python, Contained"
    machine.log(line, seconds=now())
    verdict = doctor(machine, fake_cuda(machine)).examine(FAULT, "", slices)
    assert verdict.action is NextAction.RESUME
    assert line in verdict.facts
    assert gpus_tried(machine) == set(slices)


def test_without_gpus_there_is_nothing_to_watch(machine: FakeMachine) -> None:
    one = doctor(machine, machine.host)
    with one.watch(()):
        assert one.alarm() is None
    fault = Fault(kind="worker_killed", message="SIGKILL")
    assert one.examine(fault, "", ()).action is NextAction.RESUME


def test_no_driver_library_is_loaded_into_our_own_process(machine: FakeMachine) -> None:
    # In a fresh process: torch, which other tests import, loads a driver library by itself.
    host = fake_cuda(machine)
    order = pickle.dumps((host, machine.folder / "job-1", FAULT, GPUS))
    result = subprocess.run([sys.executable, "-c", EXAMINE], input=order, capture_output=True)
    assert result.returncode == 0, result.stderr.decode()
    assert json.loads(result.stdout) == ["resume", []]
    assert gpus_tried(machine) == set(GPUS)


def test_the_verdict_in_the_bundle_is_the_verdict(machine: FakeMachine) -> None:
    verdict = doctor(machine, fake_cuda(machine)).examine(FAULT, "words", GPUS)
    assert verdict.bundle is not None
    saved = json.loads((Path(verdict.bundle) / "verdict.json").read_text())
    assert saved.pop("rule") == "cuda_decides"
    assert saved == verdict.model_dump(mode="json")


def test_a_disk_that_takes_nothing_does_not_cost_the_verdict(machine: FakeMachine) -> None:
    machine.log(LOST, UVM, seconds=now())
    nowhere = Path("/proc")  # nobody can make a folder or a file there
    verdict = GpuDoctor(fake_cuda(machine), nowhere).examine(FAULT, "", GPUS)
    assert verdict.action is NextAction.REBOOT
    assert verdict.bundle is None


def test_a_killed_worker_costs_no_cuda_test_unless_a_card_says_something(
    machine: FakeMachine,
) -> None:
    fault = Fault(kind="worker_killed", message="SIGKILL")
    one = doctor(machine, fake_cuda(machine))
    assert one.examine(fault, "", GPUS).action is NextAction.RESUME
    assert gpus_tried(machine) == set()
    machine.log("NVRM: Xid (PCI:0000:41:00): 31, pid=1, MMU Fault", seconds=now())
    assert one.examine(fault, "", GPUS).action is NextAction.RESUME
    assert gpus_tried(machine) == set(GPUS)


def test_what_the_driver_reports_while_cuda_is_tried_counts(machine: FakeMachine) -> None:
    machine.log(LOST, seconds=now())
    verdict = doctor(machine, fake_cuda(machine, logs=UVM)).examine(FAULT, "", GPUS)
    assert len(verdict.survivors) == 3, "CUDA still worked when it was tried"
    assert verdict.action is NextAction.REBOOT
