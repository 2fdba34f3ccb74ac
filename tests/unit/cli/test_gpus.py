"""``slm gpus``: tables and exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from slm_core.testing.fake_driver import FakeDriver, compiler

needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C compiler on this machine")


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """One GPU, and a kernel log without a fault."""
    driver = FakeDriver(tmp_path / "driver")
    for name, value in driver.environment.items():
        monkeypatch.setenv(name, value)
    driver.set(count=1, recovery=0)
    (tmp_path / "kernel.log").write_text("[    0.000000] Linux version 6.8.0 (test)\n")
    return driver


@needs_compiler
def test_a_healthy_gpu_is_status_0(slm: Any, driver: FakeDriver, tmp_path: Path) -> None:
    words = ("gpus", "check", "--no-active", "--kernel-log", tmp_path / "kernel.log")
    shown = slm(*words).stdout
    assert FakeDriver.uuid(0) in shown
    assert "may be used" in shown
    report = json.loads(slm(*words, "--json").stdout)
    assert {check["health"] for check in report["checks"]} == {"PASS"}


@needs_compiler
def test_a_sick_gpu_is_status_1_with_what_to_type(
    slm: Any, driver: FakeDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLM_KERNEL_LOG", str(tmp_path / "kernel.log"))
    driver.set(recovery=1)
    shown = slm("gpus", "check", "--no-active", status=1).stdout
    assert "reset gpu" in shown
    assert f"--gpu-reset -i {FakeDriver.uuid(0)}" in shown


@needs_compiler
def test_only_the_named_gpu(slm: Any, driver: FakeDriver, tmp_path: Path) -> None:
    words = ("gpus", "check", "--no-active", "--kernel-log", tmp_path / "kernel.log")
    assert "No GPU of this name" in slm(*words, "--gpu", "GPU-of-nobody", status=1).stdout


def test_an_xid_is_explained(slm: Any) -> None:
    assert "no longer answers on the PCIe bus" in slm("gpus", "explain", 79).stdout
    assert "not in our table" in slm("gpus", "explain", 4711).stdout
