"""What a post-mortem keeps, also of a machine on which nothing answers."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from slm_core.health import host_files
from slm_core.health.devices import check_files
from slm_core.health.doctor import GpuDoctor
from slm_core.health.host import HostPaths
from slm_core.health.host_files import HostFiles
from slm_core.records import Fault
from slm_core.testing.fake_cuda import fake_cuda
from slm_core.testing.fake_driver import FakeDriver, FakeMachine

GPUS = (FakeDriver.uuid(0), FakeDriver.uuid(1))
FAULT = Fault(kind="cuda_error", message="CUDA error: unknown error", step=3)
AER = "pcieport 0000:40:01.1: AER: Corrected error received: 0000:40:01.1"
ASKED = (
    "NVRM: Xid (PCI:0000:42:00): 154, GPU recovery action changed from 0x0 (None) to 0x1 (GPU "
    "Reset Required)"
)
FILES = {
    "README.txt",
    "evidence.json",
    "fault.json",
    "kernel.log",
    "kernel_events.txt",
    "lspci.txt",
    "nvidia-smi-q.txt",
    "recovery.json",
    "sightings.jsonl",
    "stuck.json",
    "telemetry.jsonl",
    "verdict.json",
    "versions.json",
    "worker.log",
}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    driver = FakeDriver(tmp_path / "lib")
    driver.set(count=2)
    for name, value in driver.environment.items():
        monkeypatch.setenv(name, value)
    machine = FakeMachine(tmp_path / "machine", gpus=2)
    machine.nvidia_smi(text="Product Name : Fake 3090", code=0)
    stuck = machine.proc / "4711"
    stuck.mkdir()
    (stuck / "stat").write_text("4711 (pt (x) main) D 1 2 3")
    (stuck / "wchan").write_text("os_acquire_mutex")
    (machine.proc / "4712").mkdir()
    (machine.proc / "4712/stat").write_text("4712 (python) S 1 2 3")
    (machine.proc / "4713").mkdir()  # ended while we looked
    return machine


def examined(machine: FakeMachine, words: str = "the end of the log") -> Path:
    machine.log(AER, ASKED, seconds=time.monotonic())
    doctor = GpuDoctor(fake_cuda(machine), machine.folder / "run")
    bundle = doctor.examine(FAULT, words, GPUS).bundle
    assert bundle is not None
    return Path(bundle)


def test_everything_is_there(machine: FakeMachine) -> None:
    bundle = examined(machine)
    assert {path.name for path in bundle.iterdir()} == FILES
    text = {path.name: path.read_text() for path in bundle.iterdir()}
    assert AER in text["kernel.log"]
    assert ASKED in text["kernel_events.txt"]
    assert "exit code 0" in text["nvidia-smi-q.txt"]
    assert "Fake 3090" in text["nvidia-smi-q.txt"]
    assert json.loads(text["recovery.json"])[GPUS[1]]["action"] == "gpu_reset"
    assert json.loads(text["recovery.json"])[GPUS[0]] == "nothing known"
    assert json.loads(text["stuck.json"]) == [
        {"pid": 4711, "name": "pt (x) main", "state": "D", "wchan": "os_acquire_mutex"}
    ]
    versions = json.loads(text["versions.json"])
    assert versions["kernel_module"] == versions["driver_library"] == "580.65.06"
    assert versions["boot_id"] == machine.host.boot_id()
    assert "the end of the log" in text["worker.log"]
    assert json.loads(text["fault.json"])["step"] == 3
    assert text["README.txt"].startswith("RESET_GPU: ")
    assert f"sudo nvidia-smi --gpu-reset -i {GPUS[1]}" in text["README.txt"]
    assert "evidence tier 1" in text["README.txt"]
    assert "none: " in text["telemetry.jsonl"]


def test_a_machine_on_which_nothing_answers(machine: FakeMachine) -> None:
    machine.kernel_log.unlink()
    (machine.folder / "nvidia-smi").unlink()
    shutil.rmtree(machine.proc / "driver")
    doctor = GpuDoctor(fake_cuda(machine, broken=(0, 1)), machine.folder / "run")
    verdict = doctor.examine(FAULT, "", GPUS)
    assert verdict.bundle is not None
    bundle = Path(verdict.bundle)
    assert {path.name for path in bundle.iterdir()} == FILES
    assert "does not exist" in (bundle / "kernel_events.txt").read_text()
    assert "exit code 127" in (bundle / "nvidia-smi-q.txt").read_text()


def test_bundles_of_one_second_do_not_mix_and_none_is_half(machine: FakeMachine) -> None:
    first, second = examined(machine), examined(machine)
    assert first != second
    assert sorted(path.name for path in first.parent.glob("postmortem-*")) == sorted(
        {first.name, second.name}
    )


def test_a_long_log_is_cut_at_its_beginning(machine: FakeMachine) -> None:
    text = (examined(machine, "a" * 100_000 + "the last words") / "worker.log").read_text()
    assert len(text) < 70_000
    assert text.endswith("the last words\n")


def test_processes_in_state_d_of_this_machine() -> None:
    files = host_files.look(HostPaths(), deadline_seconds=10)
    assert all(one["state"] == "D" for one in files.stuck)


def test_a_process_that_blocks_its_reader_does_not_hold_the_bundle(machine: FakeMachine) -> None:
    os.mkfifo(machine.proc / "4713/stat")  # nobody will ever write to it
    began = time.monotonic()
    text = (examined(machine) / "stuck.json").read_text()
    assert time.monotonic() - began < 30
    assert text.startswith("not known")


def test_only_those_at_the_driver_are_a_warning() -> None:
    names = ("nv_queue", "pt_main_thread", "jbd2/sda1-8")
    stuck = tuple(
        {"pid": pid, "name": name, "state": "D", "wchan": ""} for pid, name in enumerate(names)
    )
    files = HostFiles(finished=True, stuck=stuck)
    assert [one["name"] for one in files.stuck_at_driver] == list(names[:2])
    (warning,) = check_files(files)
    assert warning.message.startswith("2 processes wait inside the kernel")
