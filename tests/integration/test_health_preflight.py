"""The preflight against a driver that lies, dies, hangs and loses GPUs: never a silent PASS.

The library is a real one, loaded by the real ``nvidia-ml-py`` in a real child process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from slm_core.health import HealthSpec, check_gpus, next_action
from slm_core.health.findings import commands
from slm_core.records import EvidenceTier, Health, HealthReport, NextAction
from slm_core.testing.fake_driver import FakeDriver, FakeMachine, compiler

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(compiler() is None, reason="the fake driver needs a C compiler"),
]

FIRST, SECOND = FakeDriver.uuid(0), FakeDriver.uuid(1)
QUICK = HealthSpec(nvidia_smi_seconds=1)
OFF = "NVRM: GPU 0000:41:00.0: GPU has fallen off the bus."
UVM = "NVRM: nvGpuOpsReportFatalError: uvm encountered global fatal error 0x60, requiring os reboot"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> FakeDriver:
    return FakeDriver(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def driver(library: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    """Two healthy GPUs."""
    for name, value in library.environment.items():
        monkeypatch.setenv(name, value)
    library.clear()
    library.set(count=2, recovery=0)
    yield library
    library.clear()


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    return FakeMachine(tmp_path, gpus=2)


def check(machine: FakeMachine, spec: HealthSpec = QUICK, **more: Any) -> HealthReport:
    return check_gpus(spec, active=False, host=machine.host, **more)


def the(report: HealthReport, name: str, gpu: str | None = None) -> Any:
    (found,) = [one for one in report.checks if (one.name, one.gpu) == (name, gpu)]
    return found


def test_two_healthy_gpus_pass_within_ten_seconds(driver: FakeDriver, machine: FakeMachine) -> None:
    report = check(machine, HealthSpec(expected_gpus=2))
    assert report.health is Health.PASS, report.checks
    assert report.tier is EvidenceTier.KERNEL_LOG
    assert [(gpu.uuid, gpu.pci_bus_id) for gpu in report.usable] == [
        (FIRST, "0000:41:00.0"),
        (SECOND, "0000:42:00.0"),
    ]
    assert report.gpus[0].memory_bytes == 24 << 30
    assert report.boot_id == "11111111-1111-4111-8111-111111111111"
    assert next_action(report) is None
    assert report.seconds < 10
    # A card without ECC has no such check, rather than a passed one.
    assert {one.name for one in report.checks if one.gpu == FIRST} == {
        "gpu", "recovery", "temperature", "memory_in_use", "pcie", "clocks",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("code", "action"),
    [
        (8, NextAction.CHECK_POWER),
        (9, NextAction.RELOAD_DRIVER),
        (14, NextAction.CONTACT_VENDOR),
        (15, NextAction.REBOOT),
        (16, NextAction.RESET_GPU),
        (17, NextAction.RECREATE_CONTAINER),
        (18, NextAction.RELOAD_DRIVER),
        (999, NextAction.REBOOT),
        (77, NextAction.REBOOT),
    ],
)
def test_a_driver_that_does_not_start_fails(
    driver: FakeDriver, machine: FakeMachine, code: int, action: NextAction
) -> None:
    driver.set(init=code)
    report = check(machine)
    assert the(report, "driver").health is Health.FAIL
    assert str(code) in the(report, "driver").message
    assert (next_action(report), report.usable) == (action, ())
    assert commands(report)


def test_a_library_that_is_missing_in_a_container_is_not_mounted(
    driver: FakeDriver, machine: FakeMachine
) -> None:
    (machine.proc / "1").mkdir()
    (machine.proc / "1/cgroup").write_text("0::/docker/0123\n")
    driver.set(init=12)
    assert next_action(check(machine)) is NextAction.RECREATE_CONTAINER


def test_no_permission_is_unknown_and_not_a_pass(driver: FakeDriver, machine: FakeMachine) -> None:
    driver.set(init=4)
    report = check(machine)
    assert (report.health, report.usable) == (Health.UNKNOWN, ())


def test_a_mismatch_names_the_loaded_module(driver: FakeDriver, machine: FakeMachine) -> None:
    driver.set(init=18)
    assert "580.65.06" in the(check(machine), "driver").message


def test_a_driver_that_is_busy_for_a_moment_is_asked_again(
    driver: FakeDriver, machine: FakeMachine
) -> None:
    driver.set(init=23)
    began = time.monotonic()
    assert check(machine).health is Health.FAIL
    assert time.monotonic() - began > 1


@pytest.mark.parametrize(
    ("happened", "action", "said"),
    [
        (FakeMachine.deny_devices, NextAction.RECREATE_CONTAINER, "reboot is not needed"),
        (lambda m: m.take_off_the_bus(1), NextAction.REBOOT, "0000:42:00.0"),
        (lambda m: m.log(UVM), NextAction.REBOOT, "kernel log"),
        (lambda m: (m.deny_devices(), m.log(OFF)), NextAction.REBOOT, "kernel log"),
    ],
    ids=["cgroup", "off the bus", "uvm", "cgroup and lost"],
)  # fmt: skip
def test_999_of_a_container_without_devices_and_of_a_dead_driver(
    driver: FakeDriver,
    machine: FakeMachine,
    happened: Callable[[FakeMachine], object],
    action: NextAction,
    said: str,
) -> None:
    driver.set(init=999)
    happened(machine)
    report = check(machine)
    assert said in the(report, "driver").message
    assert next_action(report) is action


def test_a_lost_gpu_is_left_out_and_named(driver: FakeDriver, machine: FakeMachine) -> None:
    driver.set(**{"lost.1": 1})
    machine.log("NVRM: Xid (PCI:0000:42:00): 79, pid=1, name=x, GPU has fallen off the bus.")
    report = check(machine)
    # NVML tells no UUID of a lost GPU; it is worked out from what the kernel still shows.
    assert the(report, "gpu", SECOND).health is Health.FAIL
    assert the(report, "kernel_log", SECOND).health is Health.FAIL
    assert [gpu.uuid for gpu in report.usable] == [FIRST]
    assert next_action(report) is NextAction.DROP_GPU


@pytest.mark.parametrize("function", ["nvmlInitWithFlags", "nvmlDeviceGetTemperature"])
def test_a_driver_that_hangs_fails_in_time_and_the_call_is_named(
    driver: FakeDriver, machine: FakeMachine, function: str
) -> None:
    driver.set(hang=function)
    report = check(machine, HealthSpec(nvml_seconds=3))
    assert report.seconds < 6
    assert the(report, "driver").health is Health.FAIL
    assert "hangs" in the(report, "driver").message
    where = "nvmlInit" if "Init" in function else "GPU 0: temperature"
    assert where in the(report, "driver").message
    assert report.usable == ()


def test_a_driver_that_crashes_in_the_middle_is_no_pass(
    driver: FakeDriver, machine: FakeMachine
) -> None:
    driver.set(fail="nvmlDeviceGetCount_v2:999")
    assert the(check(machine), "driver").health is Health.FAIL


@pytest.mark.parametrize(
    ("number", "action"),
    [(1, NextAction.RESET_GPU), (2, NextAction.REBOOT), (4, NextAction.RESET_GPU),
     (99, NextAction.CONTACT_VENDOR)],
)  # fmt: skip
def test_what_the_driver_asks_for_fails_and_is_printed_as_a_command(
    driver: FakeDriver, machine: FakeMachine, number: int, action: NextAction
) -> None:
    driver.set(recovery=number)
    report = check(machine)
    assert (report.health, next_action(report)) == (Health.FAIL, action)
    if number == 1:
        assert any(f"--gpu-reset -i {FIRST}" in line for line in commands(report))


def test_a_poisoned_driver_fails_though_nvml_looks_perfect(
    driver: FakeDriver, machine: FakeMachine
) -> None:
    machine.log(UVM)
    report = check(machine)
    assert the(report, "driver").health is Health.PASS
    assert the(report, "kernel_log").health is Health.FAIL
    assert (report.usable, next_action(report)) == ((), NextAction.REBOOT)


def test_half_a_kernel_log_without_a_fault_is_a_warning(
    driver: FakeDriver, machine: FakeMachine
) -> None:
    machine.kernel_log.write_text("[ 9000.000000] usb 1-1: new device\n")
    assert the(check(machine), "kernel_log").health is Health.WARN


def test_xids_of_the_last_hour_weigh_by_what_the_driver_says_now(
    driver: FakeDriver, machine: FakeMachine
) -> None:
    machine.log("NVRM: Xid (PCI:0000:42:00): 48, Double Bit ECC Error")
    driver.set(recovery=None)
    assert the(check(machine), "kernel_log", SECOND).health is Health.FAIL
    driver.set(recovery=0)  # it has been reset since
    assert the(check(machine), "kernel_log", SECOND).health is Health.WARN
    machine.log("NVRM: Xid (PCI:0000:42:00): 4711, from a newer driver")
    assert any("4711" in one.message for one in check(machine).checks)


def test_an_old_request_of_the_driver_counts_only_while_it_still_holds(
    driver: FakeDriver, machine: FakeMachine
) -> None:
    line = "NVRM: Xid (PCI:0000:41:00): 154, GPU recovery action changed from 0x{} (x) to 0x{} (y)"
    machine.log(line.format(0, 1))
    driver.set(recovery=None)
    assert next_action(check(machine)) is NextAction.DROP_GPU
    machine.log(line.format(1, 0))
    assert check(machine).health is Health.PASS


VALUES: list[tuple[dict[str, object], str, Health]] = [
    ({"temperature.1": 80}, "temperature", Health.WARN),
    ({"temperature.1": 95}, "temperature", Health.FAIL),
    ({"memory_used.1": 3 << 30}, "memory_in_use", Health.WARN),
    ({"width.1": 4}, "pcie", Health.WARN),
    ({"throttle.1": 0x80}, "clocks", Health.WARN),
    ({"throttle.1": 0x40}, "clocks", Health.WARN),
    ({"throttle.1": 0x04}, "clocks", Health.PASS),
    ({"ecc.1": 2}, "memory_errors", Health.FAIL),
    ({"ecc.1": 0}, "memory_errors", Health.PASS),
    ({"sram.1": 5}, "memory_errors", Health.WARN),
    ({"remap_pending.1": 1}, "memory_errors", Health.WARN),
    ({"remap_failed.1": 1}, "memory_errors", Health.FAIL),
    ({"fail.1": "nvmlDeviceGetTemperature:999"}, "gpu", Health.WARN),
    ({"fail.1": "nvmlDeviceGetUUID:999"}, "gpu", Health.UNKNOWN),
    ({"fail.1": "nvmlDeviceGetTemperature:15"}, "gpu", Health.FAIL),
    ({"fail.1": "nvmlDeviceGetTemperature:16"}, "gpu", Health.FAIL),
]


@pytest.mark.parametrize(("values", "name", "health"), VALUES, ids=[str(v) for v, _, _ in VALUES])
def test_values_of_one_card(
    driver: FakeDriver,
    machine: FakeMachine,
    values: dict[str, object],
    name: str,
    health: Health,
) -> None:
    driver.set(**values)
    report = check(machine)
    found = [one for one in report.checks if one.name == name and one.gpu not in (None, FIRST)]
    assert [one.health for one in found] == [health]
    assert the(report, "gpu", FIRST).health is Health.PASS
    usable = [gpu.uuid for gpu in report.usable]
    assert usable == ([FIRST] if health in (Health.FAIL, Health.UNKNOWN) else [FIRST, SECOND])


def test_fewer_gpus_than_expected_or_than_device_files(
    driver: FakeDriver, machine: FakeMachine
) -> None:
    assert the(check(machine, HealthSpec(expected_gpus=3)), "gpu_count").health is Health.FAIL
    driver.set(count=1)
    assert the(check(machine), "gpu_count").health is Health.FAIL
    driver.set(count=0)
    assert check(machine).usable == ()
    assert check(machine).health is Health.FAIL


def test_mig_slices_stand_in_for_the_card_and_share_its_fate(
    driver: FakeDriver, machine: FakeMachine
) -> None:
    driver.set(**{"slices.0": 2})
    report = check(machine)
    assert [gpu.is_mig for gpu in report.usable] == [True, True, False]
    assert report.gpus[0].uuid.startswith("MIG-")
    machine.log("NVRM: Xid (PCI:0000:41:00 GPU-I:05): 95, Uncontained")
    driver.set(recovery=None)
    assert [gpu.uuid for gpu in check(machine).usable] == [SECOND]
    driver.set(**{"slices.0": 0})
    assert the(check(machine), "mig", "0000:41:00.0").health is Health.UNKNOWN


@pytest.mark.parametrize("name", [SECOND, SECOND[:-1], "1", "0000:42:00.0", "42:00.0"])
def test_one_gpu_by_any_of_its_names(driver: FakeDriver, machine: FakeMachine, name: str) -> None:
    driver.set(**{"uuid.1": "GPU-abcdef"}) if name == SECOND[:-1] else None
    wanted = "GPU-abc" if name == SECOND[:-1] else name
    driver.set(**{"lost.0": 1})
    report = check(machine, gpus=(wanted,))
    assert [gpu.index for gpu in report.usable] == [1]
    assert report.health is Health.PASS


def test_a_gpu_that_is_not_there_fails(driver: FakeDriver, machine: FakeMachine) -> None:
    report = check(machine, gpus=("GPU-of-nobody",))
    assert the(report, "gpu", "GPU-of-nobody").health is Health.FAIL
    assert report.usable == ()


def test_a_container_without_the_kernel_log(driver: FakeDriver, machine: FakeMachine) -> None:
    machine.kernel_log.unlink()
    report = check(machine)
    assert (report.tier, report.health) == (EvidenceTier.NVML_EVENTS, Health.WARN)
    assert "recovery state" in the(report, "kernel_log").message
    strict = check(machine, HealthSpec(require_kernel_log=True))
    assert (strict.health, strict.usable) == (Health.UNKNOWN, ())
    driver.set(recovery=None)  # an older card: nothing vouches for it any more
    blind = check(machine)
    assert (blind.health, blind.usable) == (Health.UNKNOWN, ())


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))


def test_a_machine_without_gpus_says_so_and_passes_nothing(
    no_library: None, tmp_path: Path
) -> None:
    machine = FakeMachine(tmp_path / "machine", gpus=0)
    report = check(machine)
    assert (report.health, report.gpus) == (Health.UNKNOWN, ())
    assert "no NVIDIA GPU" in the(report, "gpu_count").message
    expected = check(machine, HealthSpec(expected_gpus=1))
    assert expected.health is Health.FAIL
    assert next_action(expected) is NextAction.RECREATE_CONTAINER


def test_cards_without_a_library_fail(no_library: None, machine: FakeMachine) -> None:
    assert the(check(machine), "driver").health is Health.FAIL
