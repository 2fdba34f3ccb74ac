"""Child process: everything that NVML says about this machine, as JSON lines.

It takes no arguments. Before each call that goes into the driver it prints
``{"doing": ...}``: a child that had to be killed has said where it hung. Only here, and in the
child that waits for events, is ``pynvml`` imported.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, cast

_NO_PACKAGE = -1
"""In place of an NVML code: the package nvidia-ml-py is not installed."""
_FUNCTION_NOT_FOUND = 13
_BAD_REASONS = 0x08 | 0x40 | 0x80
_THROTTLE_READS = 3
_THROTTLE_PAUSE_SECONDS = 0.1
_RECOVERY_FIELD = 230


def main() -> None:
    """Print versions, count, one object per GPU, and the end mark."""
    try:
        import pynvml
    except ImportError as error:
        say(init=_NO_PACKAGE, words=str(error))
        return
    nvml = cast("Any", pynvml)
    say(doing="nvmlInit")
    code, _ = ask(nvml, nvml.nvmlInit)
    say(init=code, words=words(nvml, code))
    if code:
        return
    for name, function in (
        ("driver_version", nvml.nvmlSystemGetDriverVersion),
        ("nvml_version", nvml.nvmlSystemGetNVMLVersion),
        ("cuda_version", nvml.nvmlSystemGetCudaDriverVersion_v2),
    ):
        code, value = ask(nvml, function)
        say(**{name: value, f"{name}_code": code})
    say(doing="nvmlDeviceGetCount")
    code, count = ask(nvml, nvml.nvmlDeviceGetCount)
    say(count=count, count_code=code, words=words(nvml, code))
    for index in range(count or 0):
        say(gpu=read_gpu(nvml, index))
    say(done=True)  # no nvmlShutdown: one more call that may hang, and the process ends anyway


def say(**facts: Any) -> None:
    """Print one line at once."""
    print(json.dumps(facts), flush=True)  # noqa: T201 - the result goes to the parent this way


def ask(nvml: Any, function: Callable[..., Any], *arguments: Any) -> tuple[int, Any]:
    """Return NVML's code and the answer, which is None with any code but 0."""
    try:
        value = function(*arguments)
    except nvml.NVMLError as error:
        return int(error.value), None
    except nvml.NVMLLibraryMismatchError:
        return _FUNCTION_NOT_FOUND, None
    return 0, value.decode() if isinstance(value, bytes) else value


def words(nvml: Any, code: int) -> str:
    """Return NVML's text for ``code``."""
    return str(nvml.NVMLError(code)) if code else ""


def read_gpu(nvml: Any, index: int) -> dict[str, Any]:
    """Return all answers about one GPU; ``codes`` holds those that are not 0."""
    say(doing=f"GPU {index}: nvmlDeviceGetHandleByIndex")
    code, handle = ask(nvml, nvml.nvmlDeviceGetHandleByIndex, index)
    gpu: dict[str, Any] = {"index": index, "handle": code, "words": words(nvml, code)}
    if code:
        return gpu
    codes: dict[str, int] = {}

    def read(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        say(doing=f"GPU {index}: {name}")
        code, value = ask(nvml, function, handle, *arguments)
        if code:
            codes[name] = code
        return value

    gpu["uuid"] = read("uuid", nvml.nvmlDeviceGetUUID)
    gpu["name"] = read("name", nvml.nvmlDeviceGetName)
    if (pci := read("pci", nvml.nvmlDeviceGetPciInfo)) is not None:
        gpu["pci"] = pci.busId.decode() if isinstance(pci.busId, bytes) else pci.busId
    gpu |= _memory(nvml, read)
    gpu["recovery_action"] = _recovery_action(nvml, read)
    gpu["temperature"] = read("temperature", nvml.nvmlDeviceGetTemperature, 0)
    gpu["uncorrected"] = read("ecc volatile", nvml.nvmlDeviceGetTotalEccErrors, 1, 0)
    gpu["sram_lifetime"] = read("ecc sram", nvml.nvmlDeviceGetMemoryErrorCounter, 1, 1, 7)
    rows = read("remapped rows", nvml.nvmlDeviceGetRemappedRows)
    if rows is not None:
        gpu |= {"remap_pending": bool(rows[2]), "remap_failed": bool(rows[3])}
    gpu["width"] = read("pcie width", nvml.nvmlDeviceGetCurrPcieLinkWidth)
    gpu["width_max"] = read("pcie width at most", nvml.nvmlDeviceGetMaxPcieLinkWidth)
    gpu["throttle"] = _steady_throttle(nvml, read)
    running = read("processes", nvml.nvmlDeviceGetComputeRunningProcesses)
    gpu["pids"] = [process.pid for process in running or ()]
    mode = read("mig mode", nvml.nvmlDeviceGetMigMode)
    gpu["mig"] = bool(mode and mode[0])
    gpu["slices"] = _slices(nvml, handle) if gpu["mig"] else []
    gpu["codes"] = codes
    return gpu


def _memory(nvml: Any, read: Callable[..., Any]) -> dict[str, int]:
    # The second version leaves out what the driver reserves for itself.
    version = getattr(nvml, "nvmlMemory_v2", None)
    memory = read("memory", nvml.nvmlDeviceGetMemoryInfo, version) if version else None
    if memory is None:
        memory = read("memory, first version", nvml.nvmlDeviceGetMemoryInfo)
    return {} if memory is None else {"memory": int(memory.total), "memory_used": int(memory.used)}


def _recovery_action(nvml: Any, read: Callable[..., Any]) -> int | None:
    """Return the driver's request, or None where this driver or GPU has no such field."""
    values = read("recovery action", nvml.nvmlDeviceGetFieldValues, [_RECOVERY_FIELD])
    if values is None or values[0].nvmlReturn != 0:
        return None
    return int(values[0].value.uiVal)


def _steady_throttle(nvml: Any, read: Callable[..., Any]) -> int | None:
    """Return the reasons for a low clock; bad ones only if they hold in each of several reads."""
    steady: int | None = None
    for turn in range(_THROTTLE_READS):
        if turn:
            time.sleep(_THROTTLE_PAUSE_SECONDS)
        value = read("throttle reasons", nvml.nvmlDeviceGetCurrentClocksThrottleReasons)
        if value is None:
            return None
        steady = int(value) if steady is None else steady & int(value)
        if not steady & _BAD_REASONS:
            return steady
    return steady


def _slices(nvml: Any, handle: Any) -> list[dict[str, Any]]:
    code, most = ask(nvml, nvml.nvmlDeviceGetMaxMigDeviceCount, handle)
    found: list[dict[str, Any]] = []
    for number in range(most or 0 if not code else 0):
        code, piece = ask(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number)
        if code:
            continue
        _, uuid = ask(nvml, nvml.nvmlDeviceGetUUID, piece)
        _, name = ask(nvml, nvml.nvmlDeviceGetName, piece)
        _, memory = ask(nvml, nvml.nvmlDeviceGetMemoryInfo, piece)
        total = int(memory.total) if memory is not None else None
        found.append({"uuid": uuid, "name": name, "memory": total})
    return found


if __name__ == "__main__":
    main()
