"""What a training asks of this machine before it begins."""

from __future__ import annotations

import pytest

from slm_core.errors import GpuFault
from slm_core.health.host import HostPaths
from slm_core.health.ledger import Ledger, LedgerEntry
from slm_core.records import NextAction
from slm_core.settings import Settings
from slm_core.training import TrainingSpec
from tasks.training import ready_gpus


@pytest.fixture(autouse=True)
def reboot_is_due(settings: Settings) -> None:
    boot_id, reason = HostPaths().boot_id(), "The driver met a fatal UVM error."
    entry = LedgerEntry(
        wall_time=1.0, boot_id=boot_id, job="run-1", action=NextAction.REBOOT, reason=reason
    )
    Ledger(settings.home / "health" / "ledger.json").record(entry)


@pytest.mark.skipif(not HostPaths().boot_id(), reason="the system names no boot")
def test_no_gpu_is_lent_before_the_reboot_that_an_earlier_run_asked_for() -> None:
    with pytest.raises(GpuFault, match="fatal UVM error") as caught:
        ready_gpus(TrainingSpec(base_model="student", device="cuda"))
    assert caught.value.context["action"] == "reboot"


def test_a_training_on_the_cpu_does_not_wait_for_it() -> None:
    assert ready_gpus(TrainingSpec(base_model="student", device="cpu")) == ()
