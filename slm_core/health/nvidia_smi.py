"""``nvidia-smi``, asked where NVML cannot be. Its exit code is trusted, its text is checked."""

from __future__ import annotations

from typing import NamedTuple

from slm_core.errors import install_line
from slm_core.health import bounded
from slm_core.health.child_output import how_it_hung
from slm_core.health.findings import finding
from slm_core.health.host import HostPaths
from slm_core.health.nvml_codes import SMI_STATUSES, meaning_of
from slm_core.health.pci import normal_bdf
from slm_core.records import Gpu, Health, HealthCheck, NextAction

_QUERY = "--query-gpu=index,uuid,pci.bus_id,name,memory.total"
_FIELDS = 5

_OWN_STATUSES: dict[int, tuple[NextAction, str]] = {
    4: (NextAction.RECREATE_CONTAINER, "no permission"),
    10: (NextAction.REBOOT, "the kernel has a problem with a GPU's interrupts"),
}
"""Those that mean something else than NVML's number."""


class SmiAnswer(NamedTuple):
    """The list of GPUs, or why there is none."""

    check: HealthCheck
    gpus: tuple[Gpu, ...] = ()


def ask(host: HostPaths, *, in_container: bool, deadline_seconds: float) -> SmiAnswer:
    """List the GPUs. A list that is cut or empty is no answer, whatever the exit code."""
    argv = (host.nvidia_smi, _QUERY, "--format=csv,noheader,nounits")
    outcome = bounded.run(argv, deadline_seconds=deadline_seconds)
    if outcome.hung:
        said = f"nvidia-smi hangs: {how_it_hung(outcome)}. Call the driver no more; reboot."
        return SmiAnswer(_check(outcome, Health.FAIL, said, NextAction.REBOOT))
    if outcome.code == bounded.NOT_STARTED:
        return SmiAnswer(_check(outcome, Health.UNKNOWN, "nvidia-smi is not installed here."))
    if outcome.code:
        action, meaning = _meaning(outcome.code, in_container=in_container)
        said = f"nvidia-smi failed, status {outcome.code}: {meaning}."
        return SmiAnswer(_check(outcome, Health.FAIL, said, action))
    gpus = _read(outcome.stdout)
    if not gpus:
        said = "nvidia-smi reports success and lists no GPU, or a list that is cut."
        return SmiAnswer(_check(outcome, Health.UNKNOWN, said))
    said = (
        f"nvidia-smi lists {len(gpus)} GPUs. Memory errors and what the driver asks for were not "
        f"checked: that needs nvidia-ml-py. Run: {install_line('train')}"
    )
    return SmiAnswer(_check(outcome, Health.WARN, said), gpus)


def _check(
    outcome: bounded.Outcome, health: Health, message: str, action: NextAction | None = None
) -> HealthCheck:
    seconds, code = outcome.seconds, outcome.code
    return finding("nvidia_smi", health, message, action=action, seconds=seconds, code=code)


def _meaning(code: int | None, *, in_container: bool) -> tuple[NextAction | None, str]:
    if code is None or code < 0 or code > bounded.NOT_STARTED:
        return NextAction.REBOOT, "a signal ended it"
    if code in SMI_STATUSES and (known := meaning_of(code, in_container=in_container)):
        return known
    return _OWN_STATUSES.get(code, (None, "not a status that we know; run it by hand"))


def _read(text: str) -> tuple[Gpu, ...]:
    """Return the GPUs; nothing at all if any line is not whole."""
    gpus: list[Gpu] = []
    for line in text.strip().splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        whole = len(cells) == _FIELDS and cells[0].isdigit() and cells[1].startswith("GPU-")
        if not whole or not all(cells):
            return ()
        index, uuid, pci, name, mebibytes = cells
        memory = int(mebibytes) << 20 if mebibytes.isdigit() else None
        gpus.append(
            Gpu(
                uuid=uuid,
                index=int(index),
                name=name,
                pci_bus_id=normal_bdf(pci),
                memory_bytes=memory,
            )
        )
    return tuple(gpus)
