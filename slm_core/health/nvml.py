"""NVML, asked by a child process, and what its answer means for us.

That NVML answers says nothing about CUDA: with a poisoned driver it looks perfect. That it does
not answer mostly names the cause, except for 999, which a dead driver and a container that lost
its devices have in common; what the kernel shows tells them apart.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from slm_core.errors import install_line
from slm_core.health import bounded
from slm_core.health.child_output import (
    STARTING,
    command,
    doing,
    how_it_hung,
    last_words,
    objects,
)
from slm_core.health.findings import finding
from slm_core.health.host import HostPaths
from slm_core.health.host_files import HostFiles
from slm_core.health.nvml_codes import Meaning, meaning_of
from slm_core.records import Health, HealthCheck, NextAction

NO_PACKAGE = -1
NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND, GPU_NOT_FOUND = 3, 4, 6, 28
FUNCTION_NOT_FOUND = 13
GPU_IS_LOST, RESET_REQUIRED = 15, 16
UNKNOWN_ERROR = 999
LOST = (GPU_IS_LOST, NOT_FOUND, GPU_NOT_FOUND)
NOT_APPLICABLE = (NOT_SUPPORTED, FUNCTION_NOT_FOUND)
"""The GPU or the driver has no such thing; no failure."""
BUSY = (19, 20, 23)
"""May pass by itself: in use, no memory, no resources."""

_BY_BUSY = Meaning(NextAction.REBOOT, "the driver is short of resources and did not recover")
_BY_ANY = Meaning(NextAction.REBOOT, "not an error that we know; read the kernel log")


class NvmlAnswers(NamedTuple):
    """All that NVML said before it ended, or was ended."""

    outcome: bounded.Outcome
    init: int | None
    """Code of the start; None: it gave none, having hung or crashed; ``NO_PACKAGE``."""
    words: str
    doing: str
    """The call that it was in when it ended."""
    driver_version: str
    cards: int | None
    count_code: int
    gpus: tuple[dict[str, Any], ...]
    """One per GPU that was asked, as ``nvml_child.py`` prints them."""
    finished: bool

    @property
    def usable(self) -> bool:
        """Whether it started, counted, and came to its end."""
        return self.init == 0 and self.count_code == 0 and self.finished


def ask(host: HostPaths, *, deadline_seconds: float) -> NvmlAnswers:
    """Ask NVML everything, in a child with a deadline."""
    outcome = bounded.run(command(host, "nvml_child"), deadline_seconds=deadline_seconds)
    lines = objects(outcome)
    said = {key: value for line in lines for key, value in line.items()}
    return NvmlAnswers(
        outcome=outcome,
        init=said.get("init"),
        words=str(said.get("words") or last_words(outcome)),
        doing=doing(lines),
        driver_version=said.get("driver_version") or "",
        cards=said.get("count"),
        count_code=said.get("count_code") or 0,
        gpus=tuple(line["gpu"] for line in lines if "gpu" in line),
        finished="done" in said,
    )


def check_driver(answers: NvmlAnswers, files: HostFiles, *, lost: bool) -> HealthCheck:
    """Return whether NVML could be asked at all, and if not, why.

    ``lost``: the kernel log of this boot speaks of a GPU off the bus or a fatal UVM error.
    """
    health, action, message = _judge(answers, files, lost=lost)
    return finding(
        "driver",
        health,
        message,
        action=action,
        seconds=answers.outcome.seconds,
        code=answers.init or answers.count_code if answers.init is not None else None,
        driver_version=answers.driver_version,
        module_version=files.driver_version,
        in_container=files.in_container,
    )


def _judge(
    answers: NvmlAnswers, files: HostFiles, *, lost: bool
) -> tuple[Health, NextAction | None, str]:
    outcome, code = answers.outcome, answers.init or answers.count_code
    if answers.init is None:
        code = None
    if outcome.hung and answers.doing == STARTING:
        said = (
            f"NVML was not asked: within {outcome.seconds:.1f} s its process had not even started. "
            "This machine is too busy; try again."
        )
        return Health.UNKNOWN, None, said
    if outcome.hung:
        how = how_it_hung(outcome)
        said = f"The driver hangs: {how} in {answers.doing}. Call it no more; reboot."
        return Health.FAIL, NextAction.REBOOT, said
    if code == NO_PACKAGE:
        said = f"NVML cannot be asked without nvidia-ml-py. Run: {install_line('train')}"
        return Health.UNKNOWN, None, said
    if code is None:
        said = f"NVML cannot be asked: its process ended with {outcome.code} in {answers.doing}"
        return Health.UNKNOWN, None, f"{said}: {answers.words or 'no message'}."
    if code == 0 and answers.finished:
        said = f"NVML answers; driver {answers.driver_version or 'of unknown version'}."
        return Health.PASS, None, said
    if code == 0:
        said = f"NVML ended in the middle, in {answers.doing} (status {outcome.code})."
        return Health.UNKNOWN, None, said
    if code == NO_PERMISSION:
        said = "NVML refuses to answer this user (code 4). Run as root, or give access."
        return Health.UNKNOWN, NextAction.RECREATE_CONTAINER, said
    if code in (UNKNOWN_ERROR, 17):
        action, meaning = _dead_or_cut_off(code, files, lost=lost)
    else:
        known = meaning_of(code, in_container=files.in_container)
        action, meaning = known or (_BY_BUSY if code in BUSY else _BY_ANY)
        if code == 18 and files.driver_version:
            meaning += f" (loaded module: {files.driver_version})"
    return Health.FAIL, action, f"NVML does not work, code {code}: {meaning}."


def _dead_or_cut_off(code: int, files: HostFiles, *, lost: bool) -> tuple[NextAction, str]:
    """Tell a dead driver from a container that may no longer open its devices."""
    if files.off_the_bus:
        where = ", ".join(files.off_the_bus)
        return NextAction.REBOOT, f"the GPU at {where} no longer answers on the bus"
    if lost:
        return NextAction.REBOOT, "the kernel log speaks of a lost GPU or a fatal driver error"
    if files.devices_denied:
        knows = f"; the kernel still knows {len(files.proc_gpus)} GPUs" if files.proc_gpus else ""
        return (
            NextAction.RECREATE_CONTAINER,
            f"/dev/nvidiactl may not be opened here{knows}. This container lost its devices, as "
            "after a systemd daemon-reload on the host; create it again. A reboot is not needed",
        )
    if known := meaning_of(code, in_container=files.in_container):
        return known
    return NextAction.REBOOT, (
        "the driver does not work, and nothing here says why. If nvidia-smi works on the host, "
        "create this container again; else reboot"
    )
