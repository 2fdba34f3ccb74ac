"""The flow check-gpus: what it completes with, what it fails with, and what it shows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from flows.check_gpus import check_gpus
from slm_core.records import Health
from slm_core.settings import Settings
from slm_core.status import Operations, concerns
from slm_core.testing.fake_driver import FakeDriver, compiler
from tasks import _wiring
from tasks.status import gather_status

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(compiler() is None, reason="the fake driver needs a C compiler"),
]

LOG = "[    0.000000] Linux version 6.8.0 (test)\n"


@pytest.fixture
def driver(
    prefect_server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeDriver]:
    """One healthy GPU, as far as the driver goes; a kernel log without a fault."""
    driver = FakeDriver(tmp_path / "driver")
    for name, value in driver.environment.items():
        monkeypatch.setenv(name, value)
    driver.set(count=1, recovery=0)
    log = tmp_path / "kernel.log"
    log.write_text(LOG)
    _wiring.configure(Settings.from_env({"SLM_HOME": str(tmp_path), "SLM_KERNEL_LOG": str(log)}))
    yield driver
    _wiring._settings.clear()


def artifact(key: str) -> Any:
    """Return the newest artifact of ``key``."""
    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=wanted)
    return max(found, key=lambda one: one.created).data


def test_healthy_gpus_complete_with_a_report_and_a_table_per_card(driver: FakeDriver) -> None:
    report = check_gpus(active=False)
    assert report.health is Health.PASS
    assert "| PASS | all | driver |" in artifact("preflight")
    assert FakeDriver.uuid(0) in artifact("preflight")
    assert '"temperature"' in artifact(FakeDriver.uuid(0).lower())
    assert '"kernel_log"' in artifact("gpu-machine")


def test_a_card_that_the_driver_lost_has_its_table_and_needs_a_person(driver: FakeDriver) -> None:
    driver.set(count=2, **{"lost.1": 1})
    assert check_gpus(active=False, return_state=True).is_failed()
    assert "FAIL" in artifact("gpu-index-1")
    found = concerns(gather_status.fn(Operations()))
    assert [one.key for one in found if one.runbook == "gpu-sick"] == ["gpu.index 1"]


def test_a_sick_machine_fails_with_the_next_action(driver: FakeDriver) -> None:
    driver.set(init=18)
    state = check_gpus(active=False, return_state=True)
    assert state.is_failed()
    assert "Next: reload driver" in (state.message or "")
    assert "modprobe" in artifact("preflight")


def test_a_driver_bug_in_the_log_of_the_settings_fails(driver: FakeDriver, tmp_path: Path) -> None:
    with (tmp_path / "kernel.log").open("a") as log:
        log.write("[    9.000000] nvidia-uvm: Encountered a global fatal error: NV_ERR_RC_ERROR\n")
    state = check_gpus(active=False, return_state=True)
    assert state.is_failed()
    assert "Next: reboot" in (state.message or "")


def test_what_is_not_known_of_a_gpu_fails_too(driver: FakeDriver) -> None:
    driver.set(init=4)
    assert check_gpus(active=False, return_state=True).is_failed()


def test_expected_gpus_come_from_the_settings(driver: FakeDriver, tmp_path: Path) -> None:
    _wiring.configure(Settings.from_env({"SLM_HOME": str(tmp_path), "SLM_EXPECTED_GPUS": "2"}))
    state = check_gpus(active=False, return_state=True)
    assert state.is_failed()
    assert "2 are expected" in artifact("preflight")


@pytest.mark.skipif(
    Path("/dev/nvidiactl").exists() or Path("/proc/driver/nvidia").exists(),
    reason="this machine has GPUs",
)
def test_a_machine_without_gpus_completes_and_says_so(
    driver: FakeDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    state = check_gpus(active=False, return_state=True)
    assert state.is_completed()
    assert state.name == "NoGpus"
    assert "no NVIDIA GPU" in (state.message or "")
    assert artifact("preflight").startswith("# GPUs: UNKNOWN")
