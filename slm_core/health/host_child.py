"""Child process: look at the driver's files, each of which may block while the driver is broken.

``host_child.py DEV PROC SYS`` prints one JSON object per line; before
whatever may block it prints ``{"doing": ...}``, so that the last line of a killed child says
where it hung. Standard library only.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

_NVIDIA = "0x10de"
_DISPLAY = "0x03"
"""PCI base class of graphics cards and of compute cards."""


def main(dev: Path, proc: Path, sys_: Path) -> None:
    """Print everything that the files say."""
    say(nodes=sorted(p.name for p in _listed(dev) if re.fullmatch(r"nvidia(\d+|ctl|-uvm)", p.name)))
    say(pci=_pci_devices(sys_ / "bus/pci/devices"))
    say(stuck=_stuck_processes(proc))
    say(container=_in_container(proc))
    driver = proc / "driver/nvidia"
    say(proc_gpus=sorted(path.name for path in _listed(driver / "gpus")))
    say(doing="read the driver's version")
    say(driver_version=_driver_version(driver / "version"))
    say(doing="open nvidiactl")
    say(nvidiactl_errno=_open_errno(dev / "nvidiactl"))
    for gpu in sorted(_listed(driver / "gpus")):
        say(doing=f"read {gpu.name}/information")
        say(gpu=gpu.name, **_information(gpu / "information"))
    say(done=True)


def say(**facts: Any) -> None:
    """Print one line at once."""
    print(json.dumps(facts), flush=True)  # noqa: T201 - the result goes to the parent this way


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _pci_devices(folder: Path) -> list[dict[str, Any]]:
    found = [
        {"pci": device.name, "answers": _answers(device / "config"), "driver": _driver(device)}
        for device in _listed(folder)
        if _text(device / "vendor") == _NVIDIA and _text(device / "class").startswith(_DISPLAY)
    ]
    return sorted(found, key=lambda one: str(one["pci"]))


def _answers(config: Path) -> bool | None:
    """Whether the card answers on the bus: one that has left it reads as all ones."""
    try:
        with config.open("rb") as file:
            return file.read(2) != b"\xff\xff"
    except OSError:
        return None


def _driver(device: Path) -> str:
    try:
        return (device / "driver").readlink().name
    except OSError:
        return ""


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""


def _stuck_processes(proc: Path) -> list[dict[str, Any]]:
    """Processes in state D, with the kernel function that each waits in.

    Only ``stat`` and ``wchan`` are read: the command line of such a process can block its
    reader too.
    """
    found: list[dict[str, Any]] = []
    for folder in _listed(proc):
        if not folder.name.isdigit():
            continue
        before, _, after = _text(folder / "stat").rpartition(")")
        name = before.partition("(")[2]
        if after.split()[:1] == ["D"]:
            where = _text(folder / "wchan")
            found.append({"pid": int(folder.name), "name": name, "state": "D", "wchan": where})
    return found


def _in_container(proc: Path) -> bool:
    marks = (Path("/.dockerenv"), Path("/run/.containerenv"))
    words = ("docker", "kubepods", "containerd", "libpod", "lxc")
    return any(mark.exists() for mark in marks) or any(
        word in _text(proc / "1/cgroup") + _text(proc / "self/cgroup") for word in words
    )


def _driver_version(path: Path) -> str:
    found = re.search(r"Kernel Module(?: for \S+)?\s+(\d[\w.]+)", _text(path))
    return found[1] if found else ""


def _open_errno(path: Path) -> int | None:
    """Return 0 if the device can be opened, the error's number if not, None without it."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return None
    except OSError as error:
        return error.errno
    return 0


def _information(path: Path) -> dict[str, str]:
    rows = (line.partition(":") for line in _text(path).splitlines())
    values = {name.strip(): value.strip() for name, _, value in rows}
    return {"uuid": values.get("GPU UUID", ""), "name": values.get("Model", "")}


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]))
