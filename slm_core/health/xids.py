"""What the driver's error numbers (Xids) mean and ask for: our own table, ``xids.json``.

An Xid alone never decides whether a GPU is dropped or the machine rebooted: a fatal UVM error
and what the driver itself asks for (Xid 154) go first, and CUDA tried on the other GPUs decides.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple, cast

from slm_core.records import Health

XidAction = Literal[
    "ignore",
    "restart_app",
    "follow_other_xid",
    "reset_gpu",
    "reboot_node",
    "obey_message",
    "check_power",
    "check_fabric",
    "update_software",
    "contact_vendor",
]

WHAT_TO_DO: dict[XidAction, str] = {
    "ignore": "go on; note it",
    "restart_app": "start the program again on the same GPUs",
    "follow_other_xid": "act on the other Xid of the same minutes",
    "reset_gpu": "reset the GPU when nothing uses it",
    "reboot_node": "reboot the machine, unless CUDA still works on the other GPUs",
    "obey_message": "do what the message asks for",
    "check_power": "a person has to look at cables and power supply",
    "check_fabric": "look at NVLink and the fabric manager; try once more",
    "update_software": "update driver and firmware",
    "contact_vendor": "stop using the GPU and ask the vendor",
}


class XidRow(NamedTuple):
    """One error number."""

    code: int
    name: str
    action: XidAction
    meaning: str
    important: bool
    """Whether a training job can meet it and should tell people."""

    @property
    def health(self) -> Health:
        """How bad one such event in the recent past is, with nothing else known."""
        if self.action in ("ignore", "follow_other_xid", "restart_app"):
            return Health.PASS if not self.important else Health.WARN
        if self.action in ("reset_gpu", "reboot_node", "check_power"):
            return Health.FAIL
        return Health.WARN


def get(code: int) -> XidRow:
    """Return the row of ``code``; an unknown one is a warning for the vendor, never ignored."""
    row = _table().get(code)
    if row is not None:
        return row
    meaning = "not in our table: a newer driver, or hardware that is rarely seen"
    return XidRow(code, "UNKNOWN", "contact_vendor", meaning, True)


@cache
def _table() -> dict[int, XidRow]:
    rows = json.loads(Path(__file__).with_name("xids.json").read_text("utf-8"))
    return {
        int(code): XidRow(int(code), name, cast("XidAction", action), meaning, important)
        for code, name, action, meaning, important in rows
    }
