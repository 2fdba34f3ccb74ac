"""One test per row of the decision table, and the order in which the rows are read."""

from __future__ import annotations

from typing import Any

import pytest

from slm_core.health.cuda_text import classify
from slm_core.health.evidence import (
    CudaProbe,
    Evidence,
    LostSeen,
    NvmlAnswer,
    NvmlSeen,
    ProbeSeen,
    RecoverySeen,
    XidSeen,
)
from slm_core.health.triage import decide, triage
from slm_core.records import EvidenceTier, NextAction, Triage

GPUS = ("GPU-0", "GPU-1", "GPU-2", "GPU-3")
UVM = "NVRM: nvGpuOpsReportFatalError: uvm encountered global fatal error 0x60, requiring os reboot"
OFF = LostSeen(gpu="GPU-1", line="NVRM: GPU 0000:41:00.0: GPU has fallen off the bus.")


def xid(code: int, gpu: str = "GPU-1", seconds: float = 100.0) -> XidSeen:
    return XidSeen(code=code, gpu=gpu, seconds=seconds, line=f"Xid ({gpu}): {code}, at {seconds}")


def probes(**outcomes: CudaProbe) -> tuple[ProbeSeen, ...]:
    """``g1=CudaProbe.FAILED``; the GPUs not named passed."""
    return tuple(
        ProbeSeen(gpu=gpu, outcome=outcomes.get(f"g{number}", CudaProbe.PASSED))
        for number, gpu in enumerate(GPUS)
    )


def survivors_of(lost: str, outcome: CudaProbe = CudaProbe.PASSED) -> tuple[ProbeSeen, ...]:
    return tuple(ProbeSeen(gpu=gpu, outcome=outcome) for gpu in GPUS if gpu != lost)


def nvml_error(code: int, words: str = "error") -> NvmlSeen:
    return NvmlSeen(answer=NvmlAnswer.ERROR, code=code, words=words)


def evidence(**fields: Any) -> Evidence:
    fields.setdefault("fault_kind", "cuda_error")
    fields.setdefault("gpus", GPUS)
    fields.setdefault("tier", EvidenceTier.KERNEL_LOG)
    return Evidence(**fields)


def judged(**fields: Any) -> tuple[str, Triage]:
    """The rule that matched, and the verdict."""
    seen = evidence(**fields)
    return decide(seen)[0], triage(seen)


ALL_HUNG = survivors_of("GPU-1", CudaProbe.HUNG)
ALL_FAILED = tuple(ProbeSeen(gpu=gpu, outcome=CudaProbe.FAILED) for gpu in GPUS)
UNKNOWN_ERROR = classify("RuntimeError: CUDA error: unknown error")
OOM = classify("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB")


@pytest.mark.parametrize(
    ("rule", "action", "fields"),
    [
        # The rows of the table.
        ("out_of_memory", "resume", {"words": OOM}),
        ("xid", "resume", {"xids": (xid(13),), "probes": probes()}),
        ("xid", "resume", {"xids": (xid(31),), "probes": probes()}),
        ("xid", "resume", {"xids": (xid(43),), "probes": probes()}),
        (
            "xid",
            "drop_gpu",
            {"xids": (xid(31),), "before": (("GPU-1", 31),), "probes": probes()},
        ),
        (
            "xid",
            "contact_vendor",
            {"xids": (xid(13),), "before": (("GPU-1", 13),), "gpus": ("GPU-1",)},
        ),
        ("xid", "resume", {"xids": (xid(94),)}),
        ("xid", "resume", {"xids": (xid(48), xid(94))}),
        ("xid", "resume", {"xids": (xid(63),)}),
        ("xid", "resume", {"xids": (xid(156),)}),
        ("xid", "reset_gpu", {"xids": (xid(64),)}),
        ("xid", "reset_gpu", {"xids": (xid(48),)}),
        (
            "xid",
            "drop_gpu",
            {"xids": (xid(48),), "before": (("GPU-1", 48),), "probes": survivors_of("GPU-1")},
        ),
        ("lost_gpu", "drop_gpu", {"xids": (xid(79),), "probes": survivors_of("GPU-1")}),
        ("uvm_fatal", "reboot", {"xids": (xid(79),), "uvm": (UVM,), "lost": (OFF,)}),
        (
            "lost_gpu",
            "reboot",
            {"xids": (xid(79),), "probes": survivors_of("GPU-1", CudaProbe.FAILED)},
        ),
        ("gsp_timeout", "reset_gpu", {"xids": (xid(119),), "probes": survivors_of("GPU-1")}),
        ("gsp_timeout", "reboot", {"xids": (xid(120),), "probes": ALL_HUNG}),
        ("gsp_timeout", "reboot", {"xids": (xid(119),)}),
        (
            "driver_hung",
            "reset_gpu",
            {"nvml": NvmlSeen(answer=NvmlAnswer.HUNG), "probes": probes()},
        ),
        (
            "driver_hung",
            "reboot",
            {"nvml": NvmlSeen(answer=NvmlAnswer.HUNG, unkillable=True), "probes": probes()},
        ),
        ("driver_hung", "reboot", {"probes": ALL_HUNG}),
        (
            "nvml_code",
            "recreate_container",
            {"nvml": nvml_error(999), "in_container": True, "devices_denied": True},
        ),
        (
            "nvml_code",
            "recreate_container",
            {"nvml": nvml_error(999), "in_container": True, "host_lists_gpus": True},
        ),
        ("nvml_code", "reload_driver", {"nvml": nvml_error(18)}),
        ("cuda_decides", "resume", {"words": UNKNOWN_ERROR, "probes": probes()}),
        (
            "cuda_decides",
            "drop_gpu",
            {"words": UNKNOWN_ERROR, "probes": probes(g2=CudaProbe.FAILED)},
        ),
        ("cuda_decides", "reboot", {"words": UNKNOWN_ERROR, "probes": ALL_FAILED}),
        # The other codes of NVML.
        ("nvml_code", "check_power", {"nvml": nvml_error(8)}),
        ("nvml_code", "reload_driver", {"nvml": nvml_error(9)}),
        ("nvml_code", "reload_driver", {"nvml": nvml_error(12)}),
        ("nvml_code", "recreate_container", {"nvml": nvml_error(12), "in_container": True}),
        ("nvml_code", "contact_vendor", {"nvml": nvml_error(14)}),
        ("nvml_code", "reset_gpu", {"nvml": nvml_error(16)}),
        ("nvml_code", "recreate_container", {"nvml": nvml_error(17)}),
        ("nvml_code", "reboot", {"nvml": nvml_error(999)}),
        ("nvml_code", "reset_gpu", {"nvml": NvmlSeen(need_reset=("GPU-2",))}),
        ("lost_gpu", "drop_gpu", {"nvml": NvmlSeen(lost=("GPU-1",)), "probes": probes()}),
        # What the driver itself asks for, in Xid 154 or field 230.
        *(
            (rule, action, {"recovery": (RecoverySeen(gpu="GPU-1", action=asked, line=asked),)})
            for asked, rule, action in (
                ("none", "nothing", "resume"),
                ("gpu_reset", "recovery_asked", "reset_gpu"),
                ("bus_reset", "recovery_asked", "reset_gpu"),
                ("drain_and_reset", "recovery_asked", "reset_gpu"),
                ("drain_p2p", "recovery_asked", "resume"),
                ("recover_imex", "recovery_asked", "reload_driver"),
                ("node_reboot", "node_reboot_asked", "reboot"),
                ("system_reboot", "node_reboot_asked", "reboot"),
                ("unknown", "recovery_asked", "contact_vendor"),
            )
        ),
        # Xids of the table that have no row of their own above.
        ("xid", "check_power", {"xids": (xid(54),)}),
        ("xid", "reboot", {"xids": (xid(151),)}),
        ("xid", "contact_vendor", {"xids": (xid(58),)}),
        ("xid", "contact_vendor", {"xids": (xid(9999),)}),
        ("xid", "resume", {"xids": (xid(109),)}),
        ("xid", "reset_gpu", {"xids": (xid(109),), "before": (("GPU-1", 109),)}),
        ("xid", "resume", {"xids": (xid(69),)}),
        ("xid", "reset_gpu", {"xids": (xid(32),), "before": (("GPU-1", 32),)}),
        ("xid", "resume", {"xids": (xid(74),)}),
        ("xid", "contact_vendor", {"xids": (xid(74),), "before": (("GPU-1", 74),)}),
        ("xid", "resume", {"xids": (xid(45),)}),
        # Lines without a number.
        (
            "reset_required",
            "drop_gpu",
            {"reset_required": ("NV_ERR_RESET_REQUIRED",), "probes": probes(g3=CudaProbe.FAILED)},
        ),
        (
            "reset_required",
            "reset_gpu",
            {"reset_required": ("NV_ERR_RESET_REQUIRED",), "probes": ALL_FAILED},
        ),
        ("switch_fault", "reset_gpu", {"switch_faults": ("SXid: 24007, Fatal, Link 44",)}),
        # Nothing at all.
        ("nothing", "resume", {"fault_kind": "worker_killed", "gpus": ()}),
    ],
)
def test_row(rule: str, action: str, fields: dict[str, Any]) -> None:
    found, verdict = judged(**fields)
    assert (found, verdict.action) == (rule, NextAction(action))
    assert verdict.reason


@pytest.mark.parametrize("code", [13, 31, 45, 63, 79, 94, 119, 9999])
def test_a_fatal_uvm_error_needs_a_reboot_whatever_the_xid(code: int) -> None:
    rule, verdict = judged(xids=(xid(code),), uvm=(UVM,), probes=probes())
    assert (rule, verdict.action) == ("uvm_fatal", NextAction.REBOOT)


def test_the_incident_names_both_facts_that_decided() -> None:
    asked = tuple(RecoverySeen(gpu=gpu, action="node_reboot", line=f"154 on {gpu}") for gpu in GPUS)
    _, verdict = judged(
        words=UNKNOWN_ERROR,
        xids=(xid(79), xid(45)),
        uvm=(UVM,),
        lost=(OFF,),
        recovery=asked,
        nvml=nvml_error(999),
    )
    assert verdict.action is NextAction.REBOOT
    assert UVM in verdict.facts
    assert OFF.line in verdict.facts
    assert verdict.sick == ("GPU-1",)
    assert verdict.commands == ("sudo reboot",)


def test_the_same_without_uvm_and_with_living_survivors_drops_one_gpu() -> None:
    _, verdict = judged(
        words=UNKNOWN_ERROR,
        xids=(xid(79), xid(45)),
        lost=(OFF,),
        recovery=(RecoverySeen(gpu="GPU-1", action="gpu_reset", line="154"),),
        nvml=nvml_error(999),
        probes=survivors_of("GPU-1"),
    )
    assert verdict.action is NextAction.DROP_GPU
    assert verdict.sick == ("GPU-1",)
    assert verdict.survivors == ("GPU-0", "GPU-2", "GPU-3")


def test_a_survivor_that_could_not_be_tested_is_no_survivor() -> None:
    tried = (
        ProbeSeen(gpu="GPU-0", outcome=CudaProbe.PASSED),
        ProbeSeen(gpu="GPU-2", outcome=CudaProbe.UNTRIED),
        ProbeSeen(gpu="GPU-3", outcome=CudaProbe.HUNG),
    )
    _, verdict = judged(lost=(OFF,), probes=tried)
    assert verdict.action is NextAction.DROP_GPU
    assert verdict.survivors == ("GPU-0",)
    assert set(verdict.sick) == {"GPU-1", "GPU-2", "GPU-3"}
    assert judged(lost=(OFF,), probes=tried[1:])[1].action is NextAction.REBOOT


def test_a_lost_card_that_no_line_names_is_the_one_without_cuda() -> None:
    unnamed = LostSeen(gpu=None, line="fallen off the bus and is not responding to commands.")
    _, verdict = judged(lost=(unnamed,), probes=probes(g3=CudaProbe.FAILED))
    assert (verdict.action, verdict.sick) == (NextAction.DROP_GPU, ("GPU-3",))
    assert judged(lost=(unnamed,), probes=probes())[0] == "cuda_decides"


@pytest.mark.parametrize(
    ("cause", "at", "explained"),
    [
        (79, 101.0, True),
        (48, 279.0, True),
        (48, 281.0, False),
        (13, 114.0, True),
        (13, 116.0, False),
    ],
)
def test_xid_45_is_no_root_cause_next_to_another(cause: int, at: float, explained: bool) -> None:
    from slm_core.health.xid_rules import root_causes

    seen = root_causes((xid(45, seconds=100.0), xid(cause, "GPU-2", seconds=at)))
    assert [one.code for one in seen] == ([cause] if explained else [45, cause])


def test_the_gravest_xid_decides() -> None:
    _, verdict = judged(xids=(xid(31, "GPU-0"), xid(64, "GPU-2"), xid(63, "GPU-3")))
    assert verdict.action is NextAction.RESET_GPU
    assert verdict.sick == ("GPU-2",)
    assert "sudo nvidia-smi --gpu-reset -i GPU-2" in verdict.commands


def test_a_program_error_does_not_hide_a_card_on_which_cuda_fails() -> None:
    rule, verdict = judged(xids=(xid(31),), probes=probes(g1=CudaProbe.FAILED))
    assert rule == "cuda_decides"
    assert (verdict.action, verdict.sick) == (NextAction.DROP_GPU, ("GPU-1",))


def test_nvml_answering_says_nothing_about_cuda() -> None:
    fine = NvmlSeen(answer=NvmlAnswer.ANSWERED, code=0)
    assert judged(nvml=fine, probes=ALL_FAILED)[1].action is NextAction.REBOOT


def test_nvml_999_with_an_xid_is_no_container_trouble() -> None:
    fields: dict[str, Any] = {
        "nvml": nvml_error(999),
        "in_container": True,
        "host_lists_gpus": True,
        "devices_denied": True,
    }
    assert judged(**fields)[1].action is NextAction.RECREATE_CONTAINER
    assert judged(**fields, xids=(xid(62),))[1].action is NextAction.REBOOT


def test_nvml_999_with_devices_that_open_is_a_dead_driver() -> None:
    fields: dict[str, Any] = {
        "nvml": nvml_error(999),
        "in_container": True,
        "host_lists_gpus": True,
        "devices_denied": False,
    }
    assert judged(**fields)[1].action is NextAction.REBOOT


def test_nvml_999_without_a_log_needs_another_sign_of_a_container() -> None:
    fields: dict[str, Any] = {
        "nvml": nvml_error(999),
        "in_container": True,
        "host_lists_gpus": True,
        "tier": EvidenceTier.SYMPTOMS,
    }
    assert judged(**fields)[1].action is NextAction.REBOOT
    assert judged(**fields, devices_denied=True)[1].action is NextAction.RECREATE_CONTAINER


def test_two_reboots_in_a_week_call_for_a_person() -> None:
    fields: dict[str, Any] = {"uvm": (UVM,), "lost": (OFF,)}
    assert judged(**fields, reboots={"GPU-1": 1})[1].action is NextAction.REBOOT
    verdict = judged(**fields, reboots={"GPU-1": 2})[1]
    assert verdict.action is NextAction.CONTACT_VENDOR
    assert "sudo reboot" in verdict.commands
    assert judged(**fields, reboots={"GPU-3": 9})[1].action is NextAction.REBOOT


def test_without_a_log_or_a_test_grave_words_are_taken_as_grave() -> None:
    blind: dict[str, Any] = {"tier": EvidenceTier.SYMPTOMS}
    assert judged(**blind, words=UNKNOWN_ERROR)[1].action is NextAction.REBOOT
    bug = classify("CUDA error: an illegal memory access was encountered")
    verdict = judged(**blind, words=bug)[1]
    assert verdict.action is NextAction.RESUME
    assert "tier 4" in verdict.reason


def test_contained_memory_errors_are_repaired_after_the_job() -> None:
    verdict = judged(xids=(xid(94),))[1]
    assert verdict.action is NextAction.RESUME
    assert verdict.commands == ("sudo nvidia-smi --gpu-reset -i GPU-1",)
