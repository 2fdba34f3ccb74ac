"""Child process: wait for NVML's events and read the GPUs' vital signs, until it is killed.

``python -m slm_core.health.nvml_events PAUSE_SECONDS`` prints one JSON object per line. Before
anything goes into the driver it prints ``{"doing": ...}``: whoever reads sees from the silence
that a call does not return, and which. An event set that the driver does not have is said once;
the vital signs go on without it.
"""

from __future__ import annotations

import sys
import time
from typing import Any, cast

from slm_core.health.nvml_child import ask, say, words
from slm_core.system.parent import die_with_parent

_EVENTS = 0x8 | 0x2
"""Critical Xid, and uncorrectable memory error."""
_XID = 0x8
_TIMED_OUT = 10
_RECOVERY_FIELD = 230


def main(pause_seconds: float) -> None:
    """Print identities once, then vital signs and events for ever."""
    die_with_parent()
    try:
        import pynvml
    except ImportError as error:
        say(init=-1, words=str(error))
        return
    nvml = cast("Any", pynvml)
    say(doing="nvmlInit")
    code, _ = ask(nvml, nvml.nvmlInit)
    say(init=code, words=words(nvml, code))
    if code:
        return
    handles = _identify(nvml)
    # Once before the first pause: a fault right at the start has vital signs to look back on.
    _say_signs(nvml, handles)
    events = _register(nvml, handles)
    while True:
        _wait(nvml, events, pause_seconds)
        _say_signs(nvml, handles)


def _identify(nvml: Any) -> dict[str, Any]:
    say(doing="nvmlDeviceGetCount")
    _, count = ask(nvml, nvml.nvmlDeviceGetCount)
    handles: dict[str, Any] = {}
    for index in range(count or 0):
        say(doing=f"GPU {index}: identity")
        code, handle = ask(nvml, nvml.nvmlDeviceGetHandleByIndex, index)
        if code:
            say(index=index, handle=code, words=words(nvml, code))
            continue
        _, uuid = ask(nvml, nvml.nvmlDeviceGetUUID, handle)
        _, pci = ask(nvml, nvml.nvmlDeviceGetPciInfo, handle)
        address = "" if pci is None else pci.busId
        address = address.decode() if isinstance(address, bytes) else address
        handles[str(uuid)] = handle
        say(gpu=str(uuid), pci=address, slices=_slices(nvml, handle))
    return handles


def _slices(nvml: Any, handle: Any) -> list[str]:
    code, mode = ask(nvml, nvml.nvmlDeviceGetMigMode, handle)
    if code or not mode[0]:
        return []
    _, most = ask(nvml, nvml.nvmlDeviceGetMaxMigDeviceCount, handle)
    found: list[str] = []
    for number in range(most or 0):
        code, piece = ask(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number)
        if code == 0:
            found.append(str(ask(nvml, nvml.nvmlDeviceGetUUID, piece)[1]))
    return found


def _register(nvml: Any, handles: dict[str, Any]) -> Any:
    """Return an event set with every GPU that takes part, or None."""
    say(doing="nvmlEventSetCreate")
    code, events = ask(nvml, nvml.nvmlEventSetCreate)
    if code:
        say(events=False, words=words(nvml, code))
        return None
    taken = 0
    for uuid, handle in handles.items():
        say(doing=f"{uuid}: nvmlDeviceRegisterEvents")
        code, _ = ask(nvml, nvml.nvmlDeviceRegisterEvents, handle, _EVENTS, events)
        if code:  # cards without ECC refuse the second kind
            code, _ = ask(nvml, nvml.nvmlDeviceRegisterEvents, handle, _XID, events)
        taken += code == 0
    say(events=taken > 0, registered=taken)
    return events if taken else None


def _wait(nvml: Any, events: Any, pause_seconds: float) -> None:
    if events is None:
        time.sleep(pause_seconds)
        return
    deadline = time.monotonic() + pause_seconds
    while (left := deadline - time.monotonic()) > 0:
        say(doing="nvmlEventSetWait")
        code, event = ask(nvml, nvml.nvmlEventSetWait_v2, events, max(1, int(left * 1000)))
        if code == _TIMED_OUT:  # the normal case: nothing happened
            return
        if code:
            say(wait=code, words=words(nvml, code))
            time.sleep(max(0.0, left))
            return
        _, uuid = ask(nvml, nvml.nvmlDeviceGetUUID, event.device)
        say(event=int(event.eventType), data=int(event.eventData), uuid=uuid)


def _say_signs(nvml: Any, handles: dict[str, Any]) -> None:
    for uuid, handle in handles.items():
        say(signs=uuid, **_signs(nvml, uuid, handle))


def _signs(nvml: Any, uuid: str, handle: Any) -> dict[str, Any]:
    """Return a few cheap values; ``lost`` is the code of the first that failed gravely."""
    signs: dict[str, Any] = {}
    for name, function, arguments in (
        ("temperature", nvml.nvmlDeviceGetTemperature, (0,)),
        ("power_milliwatts", nvml.nvmlDeviceGetPowerUsage, ()),
        ("memory", nvml.nvmlDeviceGetMemoryInfo, ()),
        ("utilization", nvml.nvmlDeviceGetUtilizationRates, ()),
        ("throttle", nvml.nvmlDeviceGetCurrentClocksThrottleReasons, ()),
    ):
        say(doing=f"{uuid}: {name}")
        code, value = ask(nvml, function, handle, *arguments)
        if code in (6, 15, 16, 28):
            return {**signs, "bad": code, "words": words(nvml, code)}
        if name == "memory" and value is not None:
            value = int(value.used)
        if name == "utilization" and value is not None:
            value = int(cast("Any", value).gpu)
        signs[name] = value
    say(doing=f"{uuid}: recovery action")
    code, fields = ask(nvml, nvml.nvmlDeviceGetFieldValues, handle, [_RECOVERY_FIELD])
    if code == 0 and fields[0].nvmlReturn == 0:
        signs["recovery"] = int(fields[0].value.uiVal)
    return signs


if __name__ == "__main__":
    main(float(sys.argv[1]))
