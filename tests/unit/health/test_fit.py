"""A training gets the GPUs that nothing speaks against, or hears what does."""

from __future__ import annotations

from pathlib import Path

import pytest

from slm_core.errors import GpuFault
from slm_core.health.fit import fit_gpus, refuse_before_reboot
from slm_core.health.ledger import Ledger, LedgerEntry
from slm_core.records import EvidenceTier, Gpu, Health, HealthCheck, HealthReport, NextAction
from slm_core.testing.fake_driver import FakeMachine

GPUS = tuple(Gpu(uuid=f"GPU-{number}", index=number) for number in range(3))


def report(*checks: tuple[Health, str | None]) -> HealthReport:
    return HealthReport(
        boot_id="boot",
        tier=EvidenceTier.KERNEL_LOG,
        gpus=GPUS,
        checks=tuple(
            HealthCheck(name="xid", health=health, gpu=gpu, message=f"{gpu or 'machine'}: reset.")
            for health, gpu in checks
        ),
    )


def test_sick_and_unknown_gpus_are_left_out() -> None:
    found = fit_gpus(report((Health.FAIL, "GPU-0"), (Health.WARN, "GPU-1"), (Health.PASS, None)))
    assert [gpu.uuid for gpu in found] == ["GPU-1", "GPU-2"]


@pytest.mark.parametrize("health", [Health.FAIL, Health.UNKNOWN])
def test_a_machine_that_is_not_well_lends_no_gpu(health: Health) -> None:
    with pytest.raises(GpuFault, match="machine: reset") as caught:
        fit_gpus(report((health, None), (Health.PASS, "GPU-1")))
    assert "slm gpus check" in str(caught.value)
    assert caught.value.context["health"] == health.value


@pytest.mark.parametrize("action", [NextAction.REBOOT, NextAction.DROP_GPU])
def test_no_training_begins_before_the_reboot_that_a_fault_asked_for(
    tmp_path: Path, action: NextAction
) -> None:
    machine = FakeMachine(tmp_path / "machine")
    path = tmp_path / "health" / "ledger.json"
    refuse_before_reboot(path, machine.host)  # nothing is known yet
    boot, reason = machine.host.boot_id(), "Fatal UVM error."
    entry = LedgerEntry(wall_time=1.0, boot_id=boot, job="run-1", action=action, reason=reason)
    Ledger(path).record(entry)
    if action is NextAction.REBOOT:
        with pytest.raises(GpuFault, match=r"Fatal UVM error\. .*run-1") as caught:
            refuse_before_reboot(path, machine.host)
        assert caught.value.context["action"] == "reboot"
        assert caught.value.context["commands"] == ("sudo reboot",)
        machine.set_boot_id("after-the-reboot")
    refuse_before_reboot(path, machine.host)
