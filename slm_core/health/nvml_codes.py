"""What an error number of NVML means, and what it asks for: the one table for all who meet one.

999 is not here: a dead driver and a container that lost its devices have it in common, and only
what else is known of the machine tells them apart.
"""

from __future__ import annotations

from typing import NamedTuple

from slm_core.records import NextAction

LIBRARY_NOT_FOUND = 12
SMI_STATUSES = frozenset({8, 9, LIBRARY_NOT_FOUND, 14, 15})
"""Those with which nvidia-smi ends in the same sense; others of its statuses are its own."""


class Meaning(NamedTuple):
    """What to do about a number, and why, as the middle of a sentence."""

    action: NextAction
    text: str


_MEANINGS: dict[int, Meaning] = {
    8: Meaning(NextAction.CHECK_POWER, "a GPU lacks external power; check its power cables"),
    9: Meaning(NextAction.RELOAD_DRIVER, "the kernel module nvidia is not loaded; load it"),
    10: Meaning(NextAction.REBOOT, "the driver ran into a timeout of its own"),
    LIBRARY_NOT_FOUND: Meaning(
        NextAction.RELOAD_DRIVER, "the driver library is missing; install the driver again"
    ),
    14: Meaning(NextAction.CONTACT_VENDOR, "a board's own storage is damaged"),
    15: Meaning(NextAction.REBOOT, "a GPU is lost"),
    16: Meaning(NextAction.RESET_GPU, "a GPU needs a reset"),
    17: Meaning(
        NextAction.RECREATE_CONTAINER,
        "the operating system refuses the driver's devices; create the container again",
    ),
    18: Meaning(
        NextAction.RELOAD_DRIVER,
        "library and loaded kernel module are of different versions, as after a driver upgrade; "
        "load the module again, or reboot. The hardware is not at fault",
    ),
}
_NOT_MOUNTED = Meaning(
    NextAction.RECREATE_CONTAINER,
    "the driver library is not mounted into this container; create it again with GPU support "
    "(--gpus all)",
)


def meaning_of(code: int, *, in_container: bool) -> Meaning | None:
    """Return what ``code`` means here; None when it is not in the table."""
    if code == LIBRARY_NOT_FOUND and in_container:
        return _NOT_MOUNTED
    return _MEANINGS.get(code)
