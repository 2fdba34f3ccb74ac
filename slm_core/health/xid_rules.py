"""From the Xid lines of a run to one verdict, once everything that outranks an Xid is ruled out.

Xid 45 is never a root cause next to another Xid: the driver prints it for every channel that
it closes, and killing our own ranks prints it too. What the table says of a code is refined
here where it matters whether the same GPU has done it before.
"""

from __future__ import annotations

from typing import NamedTuple

from slm_core.health import xids
from slm_core.health.evidence import Evidence, XidSeen
from slm_core.health.remedies import reset_commands
from slm_core.records import NextAction

BURST_SECONDS = 180.0
BURST_13_SECONDS = 15.0
FOLLOWERS = frozenset({45, 171, 172})
"""Codes that report the end of something another Xid explains."""
APP_CODES = frozenset({13, 31})
"""Usually the program's fault; on the same GPU in another job it is the GPU's."""


class Verdict(NamedTuple):
    """What one rule found."""

    action: NextAction
    reason: str
    facts: tuple[str, ...] = ()
    sick: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    """For later, at the job's boundary."""


_BY_TABLE: dict[str, NextAction] = {
    "ignore": NextAction.RESUME,
    "restart_app": NextAction.RESUME,
    "follow_other_xid": NextAction.RESUME,
    "reset_gpu": NextAction.RESET_GPU,
    "reboot_node": NextAction.REBOOT,
    "check_power": NextAction.CHECK_POWER,
    "check_fabric": NextAction.RESUME,
    "update_software": NextAction.CONTACT_VENDOR,
    "contact_vendor": NextAction.CONTACT_VENDOR,
    "obey_message": NextAction.CONTACT_VENDOR,
}
_ONCE_THEN: dict[int, NextAction] = {
    109: NextAction.RESET_GPU,
    32: NextAction.RESET_GPU,
    69: NextAction.RESET_GPU,
}
"""Codes that are worth one more try, and what follows when the same GPU does it again."""
_RESET_LATER = frozenset({63, 94, 156})
"""The memory is fenced off; a reset at the end of the job finishes the repair."""
_RESET_THEN_OUT = frozenset({48, 64})
_SEVERITY = {action: number for number, action in enumerate(NextAction)}


def root_causes(seen: tuple[XidSeen, ...]) -> tuple[XidSeen, ...]:
    """Return the lines that may be a cause: no follower near another, no 48 that 94 contained."""
    others = [xid for xid in seen if xid.code not in FOLLOWERS]
    contained = {xid.gpu for xid in seen if xid.code == 94}
    return tuple(
        xid
        for xid in seen
        if not (xid.code in FOLLOWERS and any(_explains(other, xid) for other in others))
        and not (xid.code == 48 and xid.gpu in contained)
    )


def judge(evidence: Evidence) -> Verdict | None:
    """Return the verdict of the gravest Xid of the run; None where there was none."""
    found = [(_judge_one(xid, evidence), xid) for xid in root_causes(evidence.xids)]
    if not found:
        return None
    worst = max(_SEVERITY[verdict.action] for verdict, _ in found)
    gravest = [(verdict, xid) for verdict, xid in found if _SEVERITY[verdict.action] == worst]
    first = gravest[0][0]
    return first._replace(
        facts=_unique(fact for verdict, _ in gravest for fact in verdict.facts),
        sick=_unique(gpu for verdict, _ in gravest for gpu in verdict.sick),
        commands=_unique(line for verdict, _ in found for line in verdict.commands),
    )


def _explains(cause: XidSeen, follower: XidSeen) -> bool:
    burst = BURST_13_SECONDS if cause.code == 13 else BURST_SECONDS
    return abs(cause.seconds - follower.seconds) <= burst


def _judge_one(xid: XidSeen, evidence: Evidence) -> Verdict:
    row = xids.get(xid.code)
    again = (xid.gpu, xid.code) in evidence.before
    name = f"Xid {xid.code} on {xid.gpu}: {row.meaning}"
    if again and xid.code in APP_CODES:
        return _out(xid, evidence, f"{name}. It did the same in another job: it is the GPU")
    if again and xid.code in _RESET_THEN_OUT:
        return _out(xid, evidence, f"{name}. It has done so before")
    if again and xid.code in _ONCE_THEN:
        return Verdict(_ONCE_THEN[xid.code], f"{name}, again", (xid.line,), (xid.gpu,))
    if again and row.action == "check_fabric":
        return Verdict(NextAction.CONTACT_VENDOR, f"{name}, again", (xid.line,), (xid.gpu,))
    if xid.code in _RESET_LATER:
        later = reset_commands((xid.gpu,))
        reason = f"{name}. The error is contained; reset the GPU when the job has ended"
        return Verdict(NextAction.RESUME, reason, (xid.line,), (), later)
    if xid.code in _ONCE_THEN:
        return Verdict(NextAction.RESUME, f"{name}. Once is worth a try", (xid.line,))
    action = _BY_TABLE[row.action]
    # A code without a row is no proof that the GPU is sick, only that nobody here knows it.
    sick = () if action is NextAction.RESUME or row.name == "UNKNOWN" else (xid.gpu,)
    return Verdict(action, f"{name}; {xids.WHAT_TO_DO[row.action]}", (xid.line,), sick)


def _out(xid: XidSeen, evidence: Evidence, reason: str) -> Verdict:
    """Leave the GPU out if another one works; else a person has to look."""
    others = [gpu for gpu in evidence.passed if gpu != xid.gpu]
    action = NextAction.DROP_GPU if others else NextAction.CONTACT_VENDOR
    return Verdict(action, reason, (xid.line,), (xid.gpu,), reset_commands((xid.gpu,)))


def _unique(items: object) -> tuple[str, ...]:
    return tuple(dict.fromkeys(items))  # type: ignore[call-overload]
