"""Where NVML cannot be asked: nvidia-smi in its place, or no answer at all. Never a PASS."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slm_core.health import HealthSpec, check_gpus, next_action
from slm_core.records import EvidenceTier, Health, HealthReport, NextAction
from slm_core.testing.fake_driver import FakeDriver, FakeMachine, compiler

pytestmark = pytest.mark.integration

FIRST, SECOND = FakeDriver.uuid(0), FakeDriver.uuid(1)
QUICK = HealthSpec(nvidia_smi_seconds=1)


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    return FakeMachine(tmp_path, gpus=2)


def the(report: HealthReport, name: str) -> Any:
    (found,) = [one for one in report.checks if one.name == name and one.gpu is None]
    return found


@pytest.fixture
def without_nvml_package(machine: FakeMachine) -> FakeMachine:
    """A machine whose Python lacks nvidia-ml-py."""
    python = machine.folder / "python"
    block = "import sys; sys.modules['pynvml'] = None"
    site = machine.folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(block + "\n")
    python.write_text(f'#!/bin/sh\nPYTHONPATH={site} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return machine


def check_by_smi(machine: FakeMachine) -> HealthReport:
    host = replace(machine.host, python=str(machine.folder / "python"))
    return check_gpus(QUICK, active=False, host=host)


def test_nvidia_smi_stands_in_with_a_warning(without_nvml_package: FakeMachine) -> None:
    without_nvml_package.nvidia_smi(rows=2)
    report = check_by_smi(without_nvml_package)
    assert the(report, "nvidia_smi").health is Health.WARN
    assert [gpu.uuid for gpu in report.usable] == [FIRST, SECOND]
    without_nvml_package.kernel_log.unlink()
    assert check_by_smi(without_nvml_package).tier is EvidenceTier.NVIDIA_SMI


@pytest.mark.parametrize(
    ("smi", "health", "action"),
    [
        ({"code": 9}, Health.FAIL, NextAction.RELOAD_DRIVER),
        ({"code": 15}, Health.FAIL, NextAction.REBOOT),
        ({"code": 255}, Health.FAIL, NextAction.REBOOT),
        ({"code": 3}, Health.FAIL, None),
        ({"rows": 0}, Health.UNKNOWN, None),
        ({"text": "0, GPU-1, 0000:41:00.0, NVIDIA\n"}, Health.UNKNOWN, None),
        ({"text": "No devices were found\n"}, Health.UNKNOWN, None),
        ({"rows": 2, "hangs": True}, Health.FAIL, NextAction.REBOOT),
    ],
    ids=str,
)
def test_an_nvidia_smi_that_is_no_answer(
    without_nvml_package: FakeMachine,
    smi: dict[str, Any],
    health: Health,
    action: NextAction | None,
) -> None:
    without_nvml_package.nvidia_smi(**smi)
    report = check_by_smi(without_nvml_package)
    assert the(report, "nvidia_smi").health is health
    assert the(report, "nvidia_smi").facts.get("action") == (action and action.value)
    assert report.usable == ()


@pytest.mark.skipif(compiler() is None, reason="no C compiler on this machine")
def test_an_nvidia_smi_in_state_d(without_nvml_package: FakeMachine) -> None:
    without_nvml_package.nvidia_smi_in_state_d()
    check_ = the(check_by_smi(without_nvml_package), "nvidia_smi")
    assert check_.health is Health.FAIL
    assert "state D" in check_.message


def test_a_machine_too_busy_to_ask_is_unknown_and_needs_no_reboot(machine: FakeMachine) -> None:
    python = machine.folder / "python"
    python.write_text("#!/bin/sh\nexec sleep 60\n")
    python.chmod(0o755)
    host = replace(machine.host, python=str(python))
    spec = HealthSpec(nvml_seconds=0.5, files_seconds=0.5)
    report = check_gpus(spec, active=False, host=host)
    assert the(report, "driver").health is Health.UNKNOWN
    assert the(report, "driver_files").health is Health.UNKNOWN
    assert (report.usable, next_action(report)) == ((), None)


def test_without_any_way_to_ask_it_is_unknown(without_nvml_package: FakeMachine) -> None:
    report = check_by_smi(without_nvml_package)
    assert (report.health, report.usable) == (Health.UNKNOWN, ())
    assert "not installed" in the(report, "nvidia_smi").message
