"""Child processes of ours: how they are started, and the JSON lines that they print.

They are started as plain files: importing the package takes longer than what most of them do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from slm_core.health.bounded import Outcome
from slm_core.health.host import HostPaths

STARTING = "starting"
"""A child that ends here has not called the driver: the machine is too busy, or Python broken."""


def command(host: HostPaths, program: str, *options: object) -> list[str]:
    """Return the command that runs ``program``, a file of this folder without its ending."""
    # -P: the folder of the file must not be searched for modules.
    file = Path(__file__).with_name(f"{program}.py")
    return [host.python, "-P", str(file), *map(str, options)]


def objects(outcome: Outcome) -> list[dict[str, Any]]:
    """Return every whole object; anything else that a library printed is left out."""
    found: list[dict[str, Any]] = []
    for line in outcome.stdout.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(cast("dict[str, Any]", value))
    return found


def doing(lines: list[dict[str, Any]]) -> str:
    """Return what the child said last that it was about to do."""
    said = [str(line["doing"]) for line in lines if "doing" in line]
    return said[-1] if said else STARTING


def last_words(outcome: Outcome) -> str:
    """Return the last line of what it wrote to stderr."""
    lines = outcome.stderr.strip().splitlines()
    return lines[-1][:300] if lines else ""


def how_it_hung(outcome: Outcome) -> str:
    """Return in words that it hung, and whether it could be killed."""
    held = ", and cannot be killed" if outcome.unkillable else ""
    return f"no answer within {outcome.seconds:.1f} s (process state {outcome.state}{held})"
