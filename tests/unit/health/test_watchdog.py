"""The watchdog as the doctor starts it: a real process, a log in a file, a library of our own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from slm_core.health.doctor import GpuDoctor
from slm_core.health.identity import Devices
from slm_core.health.kernel_lines import Parser
from slm_core.health.sightings import Sighting, SightingsFile, SightingsReader, fault_of, stops_nvml
from slm_core.health.watch_spec import WatchSpec
from slm_core.health.watchdog import SIGHTINGS, TELEMETRY
from slm_core.records import Fault
from slm_core.testing.fake_driver import FakeDriver, FakeMachine

GPUS = tuple(FakeDriver.uuid(index) for index in range(2))
LOST = "NVRM: Xid (PCI:0000:42:00): 79, pid=1, name=python, GPU has fallen off the bus."
NAMES = Devices(uuids={FakeDriver.pci(i): FakeDriver.uuid(i) for i in range(3)})


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FakeDriver(tmp_path_factory.mktemp("driver") / "lib").folder


@pytest.fixture
def driver(library: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    driver = FakeDriver(library)
    driver.set(count=2)
    for name, value in driver.environment.items():
        monkeypatch.setenv(name, value)
    return driver


@pytest.fixture
def machine(tmp_path: Path, driver: FakeDriver) -> FakeMachine:
    return FakeMachine(tmp_path / "machine", gpus=2)


@pytest.fixture
def folder(machine: FakeMachine) -> Path:
    return machine.folder / "run"


@pytest.fixture
def doctor(machine: FakeMachine, folder: Path) -> GpuDoctor:
    spec = WatchSpec(
        nvml_pause_seconds=0.1, nvml_deadline_seconds=1.0, own_words_seconds=0.3, ring_seconds=2.0
    )
    return GpuDoctor(machine.host, folder, watch=spec)


@pytest.fixture
def watched(doctor: GpuDoctor, folder: Path) -> Iterator[GpuDoctor]:
    """A doctor whose watchdog follows the log and has heard from every GPU."""
    with doctor.watch(GPUS):
        wait_for(lambda: "events" in kinds(folder))
        yield doctor


def kinds(folder: Path) -> list[str]:
    return [one.kind for one in sightings(folder)]


def sightings(folder: Path) -> list[Sighting]:
    path = folder / SIGHTINGS
    lines = path.read_text().splitlines() if path.exists() else []
    return [Sighting.model_validate_json(line) for line in lines]


def wait_for(question: Callable[[], Any], seconds: float = 10.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (answer := question()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
    return answer


def children() -> set[int]:
    """Ids of all living processes that watch or ask NVML below this one."""
    found: set[int] = set()
    for stat in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = stat.read_bytes()
            parent = stat.with_name("environ").read_bytes()
        except OSError:
            continue
        mine = os.environ["FAKE_NVML_CONTROL"].encode() in parent
        if mine and (b"nvml_events" in words or b"health.watchdog" in words):
            found.add(int(stat.parent.name))
    return found


def is_asking(pid: int) -> bool:
    try:
        return b"nvml_events" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def test_a_kernel_line_is_an_alarm_within_a_second(
    watched: GpuDoctor, machine: FakeMachine, folder: Path
) -> None:
    assert watched.alarm() is None
    began = time.monotonic()
    machine.log(LOST, seconds=began)
    fault = wait_for(watched.alarm)
    assert time.monotonic() - began < 1.0
    assert fault.kind == "gpu_lost"
    assert fault.details["gpu"] == GPUS[1]
    assert fault.details["code"] == 79
    assert fault.detected_after_seconds is not None
    assert 0 <= fault.detected_after_seconds < 1.0
    seen = next(one for one in sightings(folder) if one.code == 79)
    assert seen.boot_id == machine.host.boot_id() != ""
    assert seen.source == "kernel_log"
    assert abs(seen.wall_time - time.time()) < 5
    assert abs(seen.monotonic_seconds - time.monotonic()) < 5


@pytest.mark.parametrize(
    "line",
    [
        "NVRM: Xid (PCI:0000:42:00): 119, pid=1, name=python, Timeout waiting for RPC from GSP",
        "nvidia-uvm: Encountered a global fatal error: NV_ERR_RC_ERROR",
    ],
)
def test_no_call_goes_into_the_driver_after_a_sign_that_it_may_hang(
    watched: GpuDoctor, machine: FakeMachine, folder: Path, line: str
) -> None:
    assert len(children()) == 2
    machine.log(line, seconds=time.monotonic())
    wait_for(lambda: "stopped" in kinds(folder))
    wait_for(lambda: len(children()) == 1, seconds=2)
    time.sleep(0.3)
    assert len(children()) == 1


def test_a_driver_that_hangs_is_told_and_stays_told(
    watched: GpuDoctor, driver: FakeDriver, folder: Path
) -> None:
    began = time.monotonic()
    driver.set(hang="nvmlDeviceGetTemperature")
    fault = wait_for(watched.alarm)
    # Two children with a second of silence each, and the start of the second.
    assert 1.0 < time.monotonic() - began < 15
    assert fault.kind == "driver_hung"
    assert "temperature" in fault.message
    assert fault.detected_after_seconds is not None
    assert fault.detected_after_seconds > 1.0
    driver.clear()
    time.sleep(0.3)
    assert watched.alarm() is not None
    assert "hung" in kinds(folder)


def test_a_hang_at_the_very_start_is_found(
    doctor: GpuDoctor, driver: FakeDriver, folder: Path
) -> None:
    driver.set(hang="nvmlInitWithFlags")
    with doctor.watch(GPUS):
        fault = wait_for(doctor.alarm)
    assert fault.kind == "driver_hung"
    assert "nvmlInit" in fault.message


def test_a_short_pause_of_the_driver_is_no_hang(
    doctor: GpuDoctor, driver: FakeDriver, folder: Path
) -> None:
    driver.set(hang="nvmlDeviceGetCount_v2")
    with doctor.watch(GPUS):
        first = wait_for(lambda: [pid for pid in children() if is_asking(pid)])
        wait_for(lambda: first[0] not in children())  # the first one was given up
        driver.set(hang=None)
        wait_for(lambda: "events" in kinds(folder))
        assert doctor.alarm() is None


@pytest.mark.parametrize(("code", "kind"), [(15, "gpu_lost"), (16, "cuda_error")])
def test_a_card_that_nvml_calls_lost(
    watched: GpuDoctor, driver: FakeDriver, code: int, kind: str
) -> None:
    driver.set(**{"lost.1": 1, "lost_code": code})
    fault = wait_for(watched.alarm)
    assert (fault.kind, fault.details["gpu"]) == (kind, GPUS[1])


def test_an_xid_that_only_nvml_tells(watched: GpuDoctor, driver: FakeDriver) -> None:
    began = time.monotonic()
    driver.set(xid="79 0 1")
    fault = wait_for(watched.alarm)
    assert time.monotonic() - began < 1.0
    assert (fault.kind, fault.details["gpu"]) == ("gpu_lost", GPUS[0])


def test_a_program_error_is_noted_and_left_to_the_program(
    watched: GpuDoctor, machine: FakeMachine, folder: Path
) -> None:
    machine.log("NVRM: Xid (PCI:0000:42:00): 31, pid=1, MMU Fault", seconds=time.monotonic())
    wait_for(lambda: any(one.code == 31 for one in sightings(folder)))
    time.sleep(0.4)
    assert watched.alarm() is None


def test_a_worker_may_die_in_its_own_words(
    watched: GpuDoctor, machine: FakeMachine, folder: Path
) -> None:
    machine.log("NVRM: Xid (PCI:0000:42:00): 95, pid=1, Uncontained", seconds=time.monotonic())
    wait_for(lambda: any(one.code == 95 for one in sightings(folder)))
    began = time.monotonic()
    assert watched.alarm() is None
    fault = wait_for(watched.alarm)
    assert time.monotonic() - began > 0.1
    assert fault.kind == "cuda_error"


def test_what_is_older_than_the_watch_is_no_alarm(
    doctor: GpuDoctor, machine: FakeMachine, folder: Path
) -> None:
    machine.log(LOST, seconds=1.0)
    with doctor.watch((GPUS[0],)):
        wait_for(lambda: "events" in kinds(folder))
        assert doctor.alarm() is None
    machine.log(LOST, seconds=time.monotonic() - 60)
    with doctor.watch((GPUS[0],)):
        time.sleep(0.5)
        assert doctor.alarm() is None


def test_without_a_kernel_log_it_says_that_it_is_blind(
    doctor: GpuDoctor, machine: FakeMachine, folder: Path
) -> None:
    machine.kernel_log.unlink()
    with doctor.watch(GPUS):
        blind = wait_for(lambda: [one for one in sightings(folder) if one.kind == "blind"])
    assert blind[0].source == "kernel_log"


def test_a_thread_that_fails_is_told_and_ends_the_watchdog(doctor: GpuDoctor, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads(doctor._configure(GPUS)) | {"python": "/nowhere/python"}
    watchdog = [sys.executable, "-m", "slm_core.health.watchdog", json.dumps(config)]
    done = subprocess.run(watchdog, timeout=20, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    (blind,) = [one for one in sightings(folder) if one.kind == "blind"]
    assert blind.source == "nvml"
    assert "/nowhere/python" in blind.text


def test_vital_signs_are_kept_for_a_while_and_written_at_the_end(
    watched: GpuDoctor, driver: FakeDriver, folder: Path
) -> None:
    driver.set(temperature=61)
    time.sleep(0.5)
    watched._end()
    lines = [json.loads(line) for line in (folder / TELEMETRY).read_text().splitlines()]
    assert {line["signs"] for line in lines} == set(GPUS)
    assert lines[-1]["temperature"] == 61
    assert len(lines) <= 2 * 20  # two seconds, ten times a second, two GPUs


def test_nothing_is_left_when_the_watch_ends(watched: GpuDoctor) -> None:
    assert len(children()) == 2
    watched._end()
    wait_for(lambda: not children(), seconds=2)


def test_a_dead_watchdog_is_started_again(watched: GpuDoctor, machine: FakeMachine) -> None:
    assert watched._process is not None
    os.kill(watched._process.pid, signal.SIGKILL)
    first = watched._process.pid
    wait_for(lambda: watched.alarm() is None and watched._process.pid != first)
    machine.log(LOST, seconds=time.monotonic())
    assert wait_for(watched.alarm).kind == "gpu_lost"


def test_alarm_never_waits(watched: GpuDoctor, driver: FakeDriver, machine: FakeMachine) -> None:
    driver.set(hang="nvmlDeviceGetTemperature")
    longest = 0.0
    for _ in range(30):
        began = time.monotonic()
        watched.alarm()
        longest = max(longest, time.monotonic() - began)
        time.sleep(0.01)
    assert longest < 0.2


def test_the_watchdog_ends_with_the_process_that_started_it(
    machine: FakeMachine, folder: Path
) -> None:
    script = f"""
import time
from pathlib import Path
from typing import Any
from slm_core.health.doctor import GpuDoctor
from slm_core.health.host import HostPaths
host = HostPaths(kernel_log=Path({str(machine.kernel_log)!r}), proc=Path({str(machine.proc)!r}))
with GpuDoctor(host, Path({str(folder)!r})).watch({GPUS!r}):
    time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", script])
    wait_for(lambda: len(children()) == 2)
    parent.kill()
    parent.wait()
    wait_for(lambda: not children(), seconds=3)


@pytest.mark.parametrize(
    ("line", "fault", "stops"),
    [
        (LOST, "gpu_lost", True),
        ("NVRM: GPU 0000:42:00.0: GPU has fallen off the bus.", "gpu_lost", True),
        ("NVRM: Xid (PCI:0000:43:00): 79, GPU has fallen off the bus.", None, True),
        ("NVRM: Xid (PCI:0000:99:00): 79, GPU has fallen off the bus.", None, True),
        ("NVRM: Xid (PCI:0000:42:00): 119, Timeout", "driver_hung", True),
        ("NVRM: Xid (PCI:0000:42:00): 31, MMU Fault", None, False),
        ("NVRM: Xid (PCI:0000:42:00): 45, Ch 8", None, False),
        ("NVRM: Xid (PCI:0000:42:00): 94, Contained", None, False),
        ("NVRM: Xid (PCI:0000:42:00): 95, Uncontained", "cuda_error", False),
        (
            "NVRM: Xid (PCI:0000:99:00): 154, GPU recovery action changed from 0x0 (None) to 0x2 "
            "(Node Reboot Required)",
            "cuda_error",
            False,
        ),
        (
            "NVRM: Xid (PCI:0000:43:00): 154, GPU recovery action changed from 0x0 (None) to 0x1 "
            "(GPU Reset Required)",
            None,
            False,
        ),
        ("nvidia-uvm: Encountered a global fatal error: X", "cuda_error", True),
    ],
)
def test_what_a_line_means_for_a_run(line: str, fault: str | None, stops: bool) -> None:
    (event,) = Parser().feed(line)
    assert fault_of(event, NAMES, GPUS) == fault
    assert stops_nvml(event) is stops


def test_a_card_without_a_name_counts_as_ours_until_ours_are_known() -> None:
    (event,) = Parser().feed("NVRM: Xid (PCI:0000:99:00): 79, GPU has fallen off the bus.")
    assert fault_of(event, Devices(), GPUS) == "gpu_lost"
    assert fault_of(event, NAMES, GPUS) is None


def test_a_slice_is_part_of_its_card() -> None:
    cut = Devices(uuids=NAMES.uuids, slices={GPUS[1]: ("MIG-a", "MIG-b")})
    assert cut.of_run(FakeDriver.pci(1), ("MIG-b", "MIG-c")) == ("MIG-b",)
    assert cut.of_run(FakeDriver.pci(0), ("MIG-a", "MIG-b")) == ()


def test_the_reader_takes_whole_lines_and_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / "sightings.jsonl"
    one = Sighting(wall_time=1, monotonic_seconds=1, boot_id="b", source="watchdog", kind="started")
    old = SightingsFile(path)
    old.add(one)
    reader = SightingsReader(path)
    assert reader.new() == []
    line = one.model_dump_json().encode() + b"\n"
    with path.open("ab", buffering=0) as file:
        file.write(line + b"no json\n" + line[:20])
        assert reader.new() == [one]
        file.write(line[20:])
    assert reader.new() == [one]
    assert reader.new() == []


def test_fault_is_a_record(watched: GpuDoctor, machine: FakeMachine) -> None:
    machine.log(LOST, seconds=time.monotonic())
    fault = wait_for(watched.alarm)
    assert Fault.model_validate_json(fault.model_dump_json()) == fault
