"""One check as a record: the words, the numbers, the next action and what a person may type."""

from __future__ import annotations

from typing import Any

from slm_core.health.remedies import commands_for
from slm_core.records import Health, HealthCheck, HealthReport, NextAction

_BLOCKING = (Health.FAIL, Health.UNKNOWN)
_ORDER = tuple(NextAction)


def finding(
    name: str,
    health: Health,
    message: str,
    *,
    gpu: str | None = None,
    action: NextAction | None = None,
    seconds: float = 0.0,
    **facts: Any,
) -> HealthCheck:
    """Return a check; with an ``action`` its facts also hold the commands, which nobody runs."""
    if action is not None:
        facts["action"] = action.value
        facts["commands"] = commands_for(action, (gpu,) if gpu else ())
    return HealthCheck(
        name=name, health=health, message=message, gpu=gpu, facts=facts, seconds=round(seconds, 3)
    )


def next_action(report: HealthReport) -> NextAction | None:
    """Return the one thing to do before work may start; None where nothing is in the way.

    With GPUs left that may be used it is to leave the others out. Else it is the most
    disruptive of those that the checks ask for, since the lesser ones would not be enough.
    """
    blocking = [check for check in report.checks if check.health in _BLOCKING]
    if not blocking:
        return None
    if report.usable:
        return NextAction.DROP_GPU
    asked = [NextAction(c.facts["action"]) for c in blocking if "action" in c.facts]
    return max(asked, key=_ORDER.index, default=None)


def commands(report: HealthReport) -> tuple[str, ...]:
    """Return what a person may type for ``next_action``, each line once."""
    action = next_action(report)
    lines = (
        line
        for check in report.checks
        if check.health in _BLOCKING and action and check.facts.get("action") == action.value
        for line in check.facts["commands"]
    )
    return tuple(dict.fromkeys(lines))
