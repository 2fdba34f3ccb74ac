"""A machine with NVIDIA GPUs that is not there: driver library, ``nvidia-smi``, device files.

``FakeDriver`` compiles ``fake_driver.c`` to a ``libnvidia-ml.so.1`` that the real ``nvidia-ml-py``
loads. Its keys, each for all GPUs or for one (``set(**{"lost.1": 1})``):

    init count           code of nvmlInit; number of GPUs
    uuid name pci memory memory_used temperature throttle width width_max power_milliwatts
    ecc sram remap_pending remap_failed recovery     not supported unless set
    slices               MIG slices; MIG is off unless set
    lost lost_code       1: every call about this GPU fails, with 15 or ``lost_code``
    hang                 name of a function that never returns
    fail                 ``function:code``
    after                the three above begin after so many calls of one process
    xid                  ``NUMBER GPU SERIAL``: one event for whoever waits
"""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

from slm_core.health.host import HostPaths

SOURCE = Path(__file__).with_name("fake_driver.c")


def compiler() -> str | None:
    """Return the C compiler of this machine, or None."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


class FakeDriver:
    """One compiled driver library and the file that says what it answers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.control = folder / "control"
        self._values: dict[str, object] = {}
        folder.mkdir(parents=True, exist_ok=True)
        library = folder / "libnvidia-ml.so.1"
        if not library.exists():
            _compile("-shared", "-fPIC", "-o", str(library))
        self._write()

    def set(self, **values: object) -> None:
        """Change some answers, from the next call on; None takes a key back."""
        self._values |= values
        self._values = {key: value for key, value in self._values.items() if value is not None}
        self._write()

    def clear(self) -> None:
        """Forget every change: one healthy GPU."""
        self._values = {}
        self._write()

    @property
    def environment(self) -> dict[str, str]:
        """Variables under which a child process finds this library."""
        return {"LD_LIBRARY_PATH": str(self.folder), "FAKE_NVML_CONTROL": str(self.control)}

    @staticmethod
    def uuid(index: int) -> str:
        """Return the name of a GPU for which none was set."""
        return f"GPU-00000000-0000-4000-8000-{index:012d}"

    @staticmethod
    def pci(index: int) -> str:
        """Return the address of a GPU for which none was set."""
        return f"0000:{0x41 + index:02x}:00.0"

    def _write(self) -> None:
        new = self.control.with_suffix(".new")
        new.write_text("".join(f"{key} {value}\n" for key, value in self._values.items()))
        new.replace(self.control)


class FakeMachine:
    """Folders in place of /proc, /sys and /dev, a kernel log in a file, and ``nvidia-smi``."""

    def __init__(self, folder: Path, gpus: int = 1) -> None:
        self.folder = folder
        self.kernel_log = folder / "kernel.log"
        self.kernel_log.parent.mkdir(parents=True, exist_ok=True)
        self.kernel_log.write_text("[    0.000000] Linux version 6.8.0 (test)\n")
        self.proc, self.sys, self.dev = (folder / name for name in ("proc", "sys", "dev"))
        for place in (self.proc / "sys/kernel/random", self.sys / "bus/pci/devices", self.dev):
            place.mkdir(parents=True, exist_ok=True)
        self.set_boot_id("11111111-1111-4111-8111-111111111111")
        (self.proc / "stat").write_text("cpu 0\nbtime 1700000000\n")
        if gpus:
            version = self.proc / "driver/nvidia/version"
            version.parent.mkdir(parents=True)
            version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun\n")
            (self.dev / "nvidiactl").touch()
        for index in range(gpus):
            self.add_gpu(index)

    @property
    def host(self) -> HostPaths:
        """What to give to the health checks."""
        return HostPaths(
            kernel_log=self.kernel_log,
            nvidia_smi=str(self.folder / "nvidia-smi"),
            proc=self.proc,
            sys=self.sys,
            dev=self.dev,
        )

    def add_gpu(self, index: int) -> None:
        """Show one more GPU in every place where the kernel shows GPUs."""
        address = FakeDriver.pci(index)
        (self.dev / f"nvidia{index}").touch()
        about = self.proc / "driver/nvidia/gpus" / address / "information"
        about.parent.mkdir(parents=True)
        about.write_text(
            f"Model: \t\t NVIDIA Fake 3090\nGPU UUID: \t {FakeDriver.uuid(index)}\n"
            f"Bus Location: \t {address}\n"
        )
        device = self.sys / "bus/pci/devices" / address
        device.mkdir()
        (device / "vendor").write_text("0x10de\n")
        (device / "class").write_text("0x030200\n")
        (device / "config").write_bytes(b"\xde\x10" + bytes(62))
        (device / "driver").symlink_to(self.sys / "bus/pci/drivers/nvidia")

    def take_off_the_bus(self, index: int) -> None:
        """Let the configuration space of a GPU read as all ones."""
        device = self.sys / "bus/pci/devices" / FakeDriver.pci(index)
        (device / "config").write_bytes(b"\xff" * 64)

    def deny_devices(self) -> None:
        """Let the driver's device refuse to be opened, for root too, as a lost cgroup does."""
        node = self.dev / "nvidiactl"
        node.unlink()
        node.symlink_to("/proc/sys/kernel/ostype")

    def set_boot_id(self, boot_id: str) -> None:
        """Reboot, as far as anybody can tell."""
        (self.proc / "sys/kernel/random/boot_id").write_text(boot_id + "\n")

    def log(self, *messages: str, seconds: float | None = None) -> None:
        """Let the kernel write ``messages``, now or at ``seconds`` since boot."""
        seconds = time.monotonic() if seconds is None else seconds
        with self.kernel_log.open("a") as file:
            file.writelines(f"[{seconds:12.6f}] {message}\n" for message in messages)

    def nvidia_smi(
        self, rows: int = 0, *, code: int = 0, text: str | None = None, hangs: bool = False
    ) -> None:
        """Put an ``nvidia-smi`` here that lists ``rows`` GPUs, or says ``text``, or hangs."""
        if text is None:
            text = "".join(
                f"{i}, {FakeDriver.uuid(i)}, {FakeDriver.pci(i)}, NVIDIA Fake 3090, 24576\n"
                for i in range(rows)
            )
        end = "exec sleep 600" if hangs else f"exit {code}"
        program = self.folder / "nvidia-smi"
        program.write_text(f"#!/bin/sh\ncat <<'TEXT'\n{text.rstrip()}\nTEXT\n{end}\n")
        program.chmod(0o755)

    def nvidia_smi_in_state_d(self) -> None:
        """Put an ``nvidia-smi`` here that sleeps uninterruptibly."""
        _compile("-DSTUCK_PROGRAM", "-o", str(self.folder / "nvidia-smi"))


def _compile(*options: str) -> None:
    name = compiler()
    if name is None:
        raise RuntimeError("the fake driver needs a C compiler: install gcc")
    subprocess.run([name, "-O1", "-Wall", "-Wextra", str(SOURCE), *options], check=True)
