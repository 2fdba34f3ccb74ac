"""What a route's own traffic says: may it go on, and must it step back?

Each question is a gate over the whole 95 % interval of a rate, as in the decision. Too few
answers are *inconclusive*, and that is never a pass. Answers of one conversation are counted
one by one, so the interval of few long conversations is somewhat too narrow.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from slm_core.errors import IllegalPromotion, StoreError
from slm_core.records import (
    GateResult,
    Route,
    Stage,
    TrafficLimits,
    TrafficOutcome,
    TrafficRole,
    utc_now,
    wilson,
)
from slm_core.serving.promotion import step_back

if TYPE_CHECKING:
    from slm_core.store import Store
    from slm_core.store.traffic import Counts

log = logging.getLogger(__name__)

GUARD = "guard"
"""Who takes a canary back by itself."""

FALL_BACKS = (
    TrafficOutcome.FORMAT,
    TrafficOutcome.ERROR,
    TrafficOutcome.TIMEOUT,
    TrafficOutcome.BUSY,
    TrafficOutcome.UNSUPPORTED,
)
_DISAGREED = (TrafficOutcome.DISAGREED, TrafficOutcome.FORMAT)


def evidence_for(
    store: Store, route: Route | None, to_stage: Stage, limits: TrafficLimits
) -> tuple[GateResult, ...]:
    """Return what must pass before ``route`` may go on to ``to_stage``; nothing for a shadow.

    The traffic of all stages tells how often the adapter disagrees; how often it falls back
    as a canary, only that of this canary.
    """
    if route is None or to_stage not in (Stage.CANARY, Stage.LIVE):
        return ()
    ever = store.traffic.totals(route)
    now = store.traffic.totals(route, version=route.version)
    role: TrafficRole = "answer" if to_stage is Stage.LIVE else "shadow"
    counts = now if role == "answer" else ever
    return (
        fall_back_gate(route, counts, role, limits, limits.min_answers),
        disagreement_gate(route, ever, limits, limits.min_answers),
    )


def require_evidence(route: Route | None, to_stage: Stage, gates: tuple[GateResult, ...]) -> None:
    """Refuse a step that the traffic does not bear out.

    Raises:
        IllegalPromotion: a gate failed, or too little is known yet.
    """
    short = [gate for gate in gates if gate.verdict != "pass"]
    if route is not None and short:
        raise IllegalPromotion(
            f"{route.adapter_id} cannot go from {route.stage} to {to_stage} for "
            f"{route.agent_name}/{route.track}: "
            + "; ".join(f"{gate.gate} is {gate.verdict}, {gate.reason}" for gate in short)
            + ". Wait for more traffic through the gateway, or retire the adapter.",
            gates=tuple(gate.gate for gate in short),
        )


def refuse_weak(route: Route, to_stage: Stage, gates: tuple[GateResult, ...]) -> None:
    """Refuse a step that was approved, if the traffic has turned against it since.

    Raises:
        IllegalPromotion: a gate failed.
    """
    weak = [f"{gate.gate}, {gate.reason}" for gate in gates if gate.verdict == "fail"]
    if weak:
        raise IllegalPromotion(
            f"{route.adapter_id} may no longer go from {route.stage} to {to_stage} for "
            f"{route.agent_name}/{route.track}: since it was asked for, its traffic fails "
            + "; ".join(weak)
            + ". Ask again when the traffic is better, or retire the adapter."
        )


def fall_back_gate(
    route: Route, counts: Counts, role: TrafficRole, limits: TrafficLimits, least: int
) -> GateResult:
    """Judge how often the teacher had to answer in the adapter's place, or would have had to."""
    answered = [TrafficOutcome.ANSWERED, TrafficOutcome.AGREED, TrafficOutcome.DISAGREED]
    failed = sum(counts[role, what] for what in FALL_BACKS)
    total = failed + sum(counts[role, what] for what in answered)
    return _at_most("fall_backs", route, failed, total, limits.max_fall_back, least)


def disagreement_gate(
    route: Route, counts: Counts, limits: TrafficLimits, least: int
) -> GateResult:
    """Judge how often the adapter called something else than the answer that was given."""
    other = sum(counts["shadow", what] for what in _DISAGREED)
    total = other + counts["shadow", TrafficOutcome.AGREED]
    return _at_most("disagreement", route, other, total, limits.max_disagreement, least)


def guard_routes(store: Store, now: datetime | None = None) -> list[Route]:
    """Take back every canary that has shown itself weak; return those that were.

    By the limits that its approval named, over the window that they name. The interval as a
    whole must lie beyond the limit, so a few unlucky answers take nothing back.

    Raises:
        StoreUnavailable: the database did not answer; those taken back before stay so.
    """
    now = now or utc_now()
    moved: list[Route] = []
    for route in store.routes.list():
        if route.stage is not Stage.CANARY:
            continue
        limits = limits_of(store, route) or TrafficLimits()
        counts = store.traffic.totals(
            route, version=route.version, since=now - timedelta(minutes=limits.guard_minutes)
        )
        gates = (
            fall_back_gate(route, counts, "answer", limits, limits.guard_answers),
            disagreement_gate(route, counts, limits, limits.guard_answers),
        )
        weak = [f"{gate.gate}: {gate.reason}" for gate in gates if gate.verdict == "fail"]
        if weak:
            try:
                moved.append(step_back(store, route, who=GUARD, reason="; ".join(weak)))
            except StoreError as error:
                if error.retryable:
                    raise
                continue  # moved by somebody else in this moment
            log.warning("canary taken back route=%s/%s", route.agent_name, route.track)
    return moved


def limits_of(store: Store, route: Route) -> TrafficLimits | None:
    """Return by what a canary is judged since its last move; None where nobody named limits."""
    for move in reversed(store.routes.history(route.agent_name, route.track)):
        if move.adapter_id == route.adapter_id and move.to_stage is Stage.CANARY:
            return move.limits
    return None


def _at_most(
    gate: str, route: Route, hits: int, total: int, limit: float, least: int
) -> GateResult:
    rate = hits / total if total else None
    low, high = wilson(rate or 0.0, total)
    said = f"{hits} of {total}"
    if total:
        said += f" ({low:.1%} to {high:.1%})"
    if total < least:
        verdict = "inconclusive"
        said += f", {least} are needed"
    else:
        verdict = "pass" if high <= limit else "fail" if low > limit else "inconclusive"
        said += f", limit {limit:.1%}"
    return GateResult(
        gate=gate,
        track=route.track,
        verdict=verdict,
        value=rate,
        threshold=limit,
        n=total,
        reason=said,
    )
