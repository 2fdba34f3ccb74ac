"""What NVML said about one GPU, held against the thresholds of the spec."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from slm_core.health import nvml
from slm_core.health.findings import finding
from slm_core.health.kernel_lines import recovery_action
from slm_core.health.spec import HealthSpec
from slm_core.records import Health, HealthCheck, NextAction

_HARDWARE_SLOWDOWN, _TOO_HOT, _POWER_BRAKE = 0x08, 0x40, 0x80
_MUST_ANSWER = ("uuid", "pci", "memory")

ACTION_OF_REQUEST: dict[str, NextAction] = {
    "gpu_reset": NextAction.RESET_GPU,
    "node_reboot": NextAction.REBOOT,
    "drain_p2p": NextAction.RESET_GPU,
    "drain_and_reset": NextAction.RESET_GPU,
    "recover_imex": NextAction.RELOAD_DRIVER,
    "bus_reset": NextAction.RESET_GPU,
    "system_reboot": NextAction.REBOOT,
    "unknown": NextAction.CONTACT_VENDOR,
}
"""What to do for each request of the driver but ``none``."""


def check_gpu(raw: dict[str, Any], name: str, spec: HealthSpec) -> list[HealthCheck]:
    """Return every check of one GPU that NVML was asked about; a lost one has a single check."""
    answers = _check_answers(raw, name)
    if answers.health is Health.FAIL:
        return [answers]
    return [answers, *_check_values(raw, name, spec)]


def _check_answers(raw: dict[str, Any], name: str) -> HealthCheck:
    codes = {"handle": raw["handle"]} | raw.get("codes", {})
    said = {what: code for what, code in codes.items() if code not in (0, *nvml.NOT_APPLICABLE)}

    def answer(health: Health, message: str, action: NextAction | None = None) -> HealthCheck:
        return finding("gpu", health, message, gpu=name, action=action, codes=said)

    if any(code in nvml.LOST for code in said.values()):
        return answer(
            Health.FAIL,
            f"The driver has lost {name}. Go on without it if CUDA works on the others, else "
            "reboot; if it comes again, look at power, heat and the slot.",
            NextAction.REBOOT,
        )
    if nvml.RESET_REQUIRED in said.values():
        return answer(Health.FAIL, f"{name} needs a reset.", NextAction.RESET_GPU)
    if raw["handle"]:
        code, words = raw["handle"], raw.get("words")
        said_so = f"{name} cannot be opened: NVML code {code} ({words})."
        if code == nvml.NO_PERMISSION:
            return answer(Health.UNKNOWN, said_so, NextAction.RECREATE_CONTAINER)
        return answer(Health.FAIL, said_so, NextAction.REBOOT)
    refused = [what for what in said if what in _MUST_ANSWER]
    if refused or not raw.get("uuid"):
        return answer(Health.UNKNOWN, f"{name} does not tell its {', '.join(refused) or 'uuid'}.")
    if said:
        return answer(Health.WARN, f"{name} answers, but not about {', '.join(sorted(said))}.")
    return answer(Health.PASS, f"{raw.get('name') or name} answers.")


def _check_values(raw: dict[str, Any], name: str, spec: HealthSpec) -> Iterator[HealthCheck]:
    request = raw.get("recovery_action")
    if request is not None:
        yield _check_request(recovery_action(request), name, request)
    yield from _check_memory_errors(raw, name, spec)
    if (celsius := raw.get("temperature")) is not None:
        health = _above(celsius, spec.temperature_warn_celsius, spec.temperature_fail_celsius)
        said = f"{celsius} °C before any work."
        if health is not Health.PASS:
            said += " Look at fans and air flow, or let it cool down."
        yield finding("temperature", health, said, gpu=name, celsius=celsius)
    if (used := raw.get("memory_used")) is not None:
        pids = raw.get("pids", [])
        health = _above(used, spec.memory_warn_bytes, spec.memory_fail_bytes)
        said = f"{used >> 20} MiB of memory in use."
        if health is not Health.PASS:
            said += f" End what uses it (process ids seen from here: {pids or 'none'})."
        yield finding("memory_in_use", health, said, gpu=name, bytes=used, pids=pids)
    yield from _check_link_and_clocks(raw, name)


def _check_request(request: str, name: str, number: int) -> HealthCheck:
    if request == "none":
        said = "The driver asks for nothing."
        return finding("recovery", Health.PASS, said, gpu=name, request=request)
    said = f"The driver asks for {request.replace('_', ' ')} (field 230 is {number})."
    action = ACTION_OF_REQUEST[request]
    return finding("recovery", Health.FAIL, said, gpu=name, action=action, request=request)


def _check_memory_errors(raw: dict[str, Any], name: str, spec: HealthSpec) -> Iterator[HealthCheck]:
    uncorrected, sram = raw.get("uncorrected"), raw.get("sram_lifetime")
    facts = {
        key: raw[key]
        for key in ("uncorrected", "sram_lifetime", "remap_pending", "remap_failed")
        if raw.get(key) is not None
    }
    if not facts:  # cards without ECC, such as GeForce
        return

    def check(health: Health, message: str, action: NextAction | None = None) -> HealthCheck:
        return finding("memory_errors", health, message, gpu=name, action=action, **facts)

    if raw.get("remap_failed"):
        said = "A bad memory row could not be replaced: stop using this GPU."
        yield check(Health.FAIL, said, NextAction.CONTACT_VENDOR)
    elif uncorrected:
        said = f"{uncorrected} memory errors that ECC could not correct, since the last reset."
        yield check(Health.FAIL, said, NextAction.RESET_GPU)
    elif raw.get("remap_pending"):
        said = "A bad memory row will be replaced at the next reset; reset between two jobs."
        yield check(Health.WARN, said, NextAction.RESET_GPU)
    elif sram is not None and sram > spec.sram_errors_warn:
        said = f"{sram} uncorrected errors in on-chip memory over its life."
        yield check(Health.WARN, said, NextAction.CONTACT_VENDOR)
    else:
        yield check(Health.PASS, "No uncorrected memory error.")


def _check_link_and_clocks(raw: dict[str, Any], name: str) -> Iterator[HealthCheck]:
    width, most = raw.get("width"), raw.get("width_max")
    if width and most:
        # The generation falls while idle, the width does not.
        facts = {"gpu": name, "width": width, "width_max": most}
        if width < most:
            said = f"PCIe link of {width} lanes, the card can do {most}. Look at slot and riser."
            yield finding("pcie", Health.WARN, said, **facts)
        else:
            yield finding("pcie", Health.PASS, f"PCIe link of {width} lanes.", **facts)
    throttle = raw.get("throttle")
    if throttle is None:
        return
    if throttle & _POWER_BRAKE:
        said = "Slowed down by the power supply (power brake). A reboot will not help."
        action = NextAction.CHECK_POWER
        yield finding("clocks", Health.WARN, said, gpu=name, action=action, reasons=throttle)
    elif throttle & (_HARDWARE_SLOWDOWN | _TOO_HOT):
        said = "Slowed down by its own protection: heat, or power. Look at fans and cables."
        yield finding("clocks", Health.WARN, said, gpu=name, reasons=throttle)
    else:
        said = "Nothing slows it down."
        yield finding("clocks", Health.PASS, said, gpu=name, reasons=throttle)


def _above(value: int, warn: int, fail: int | None) -> Health:
    if fail is not None and value >= fail:
        return Health.FAIL
    return Health.WARN if value >= warn else Health.PASS
