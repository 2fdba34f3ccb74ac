"""How an adapter comes to answer: candidate, shadow, canary, live, retired.

Every move is recorded with who made it and why, and is carried out by compare-and-set: two
people cannot both win. What it refuses: a step that skips another, and an adapter whose
evaluation did not end in SUCCESS, unless somebody overrides it with a reason.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from slm_core.errors import IllegalPromotion
from slm_core.records import (
    Adapter,
    Decision,
    Promotion,
    Route,
    Stage,
    Track,
    TrafficLimits,
    content_id,
)

if TYPE_CHECKING:
    from slm_core.store import Store

log = logging.getLogger(__name__)

LEGAL_MOVES: dict[Stage | None, tuple[Stage, ...]] = {
    None: (Stage.CANDIDATE, Stage.SHADOW),
    Stage.CANDIDATE: (Stage.SHADOW, Stage.RETIRED),
    Stage.SHADOW: (Stage.CANARY, Stage.RETIRED),
    Stage.CANARY: (Stage.CANARY, Stage.LIVE, Stage.RETIRED),
    Stage.LIVE: (Stage.RETIRED,),
    Stage.RETIRED: (Stage.CANDIDATE,),
}
"""Present stage to the stages that may follow. Beside these, an approved adapter may go live
directly, ``step_back`` takes a canary out of the traffic, and ``roll_back`` brings a retired
one back. A canary stays one when its share changes."""

_NEEDS_SUCCESS = (Stage.SHADOW, Stage.CANARY, Stage.LIVE)


def promote(
    store: Store,
    *,
    adapter: Adapter,
    agent_name: str,
    track: Track,
    decision: Decision | None,
    who: str,
    reason: str,
    to_stage: Stage = Stage.LIVE,
    auto_approve: bool = False,
    override_reason: str | None = None,
    share: float | None = None,
    limits: TrafficLimits | None = None,
) -> Route:
    """Move ``adapter`` to ``to_stage`` for one agent and track; return its route.

    An adapter that is there already stays, and nothing is recorded. One that goes live
    retires the one that was.

    Args:
        store: where routes are kept.
        adapter: the adapter to move.
        agent_name: whose calls it shall answer.
        track: which of them.
        decision: verdict on the adapter's evaluation; not needed to retire it.
        who: person or flow that asks for the move.
        reason: why, for the record.
        to_stage: where to.
        auto_approve: somebody declared that a SUCCESS may go live without the steps between.
        override_reason: why to go on although the decision is not SUCCESS.
        share: part of the conversations that a canary answers.
        limits: by what its traffic is judged from then on; None takes the usual ones.

    Raises:
        IllegalPromotion: the move is not legal, or the decision does not allow it.
        StoreError: somebody else moved the route meanwhile.
    """
    if track not in adapter.tracks:
        raise IllegalPromotion(
            f"Adapter {adapter.id} was not trained for the track {track!r}, "
            f"but for {', '.join(adapter.tracks)}."
        )
    route = store.routes.find(agent_name, track, adapter.id)
    stage = route.stage if route else None
    if route is not None and stage is to_stage and share in (None, route.share):
        return route
    if to_stage in _NEEDS_SUCCESS:
        check_decision(decision, adapter, (track,), override_reason)
    success = decision is not None and decision.outcome == "SUCCESS"
    direct = to_stage is Stage.LIVE and stage in (None, Stage.CANDIDATE)
    if to_stage not in LEGAL_MOVES[stage] and not (direct and success and auto_approve):
        raise illegal_move(adapter.id, stage, to_stage)
    if override_reason:
        reason = f"{reason} (override: {override_reason})"
    live = store.routes.live(agent_name, track)
    return move_route(
        store,
        route,
        agent_name=agent_name,
        track=track,
        adapter_id=adapter.id,
        to_stage=to_stage,
        previous=live.adapter_id if live else None,
        decision_id=decision.id if decision else None,
        who=who,
        reason=reason,
        share=share,
        limits=limits,
    )


def step_back(store: Store, route: Route, *, who: str, reason: str) -> Route:
    """Take a canary out of the traffic: back to shadow, where it is only compared.

    Raises:
        IllegalPromotion: the route is no canary.
        StoreError: somebody else moved it meanwhile.
    """
    if route.stage is not Stage.CANARY:
        raise illegal_move(route.adapter_id, route.stage, Stage.SHADOW)
    return move_route(
        store,
        route,
        agent_name=route.agent_name,
        track=route.track,
        adapter_id=route.adapter_id,
        to_stage=Stage.SHADOW,
        previous=None,
        decision_id=None,
        who=who,
        reason=reason,
    )


def roll_back(
    store: Store,
    *,
    agent_name: str,
    track: Track,
    who: str,
    reason: str,
    run_id: str | None = None,
) -> Route:
    """Bring back the adapter that was live before the present one; return its route.

    A second roll back goes one further, not forth again. An adapter that was retired by
    itself, not by a successor, is passed over. With ``run_id``, what this flow run has rolled
    back already stays as it is, so that the run may be retried.

    Raises:
        IllegalPromotion: nothing is live, or nothing was before.
        StoreError: somebody else moved a route meanwhile.
    """
    history = store.routes.history(agent_name, track)
    live = store.routes.live(agent_name, track)
    done = [move for move in history if run_id is not None and move.run_id == run_id]
    if done and live is not None:
        return live
    if live is None:
        raise IllegalPromotion(
            f"No adapter is live for {agent_name}/{track}: there is nothing to roll back."
        )
    line = _succession(history)
    if len(line) < 2 or line[-1] != live.adapter_id:
        raise IllegalPromotion(
            f"No adapter was live for {agent_name}/{track} before {live.adapter_id}. "
            "Retire it instead; then the teacher answers."
        )
    route = store.routes.find(agent_name, track, line[-2])
    if route is None or route.stage is not Stage.RETIRED:
        raise IllegalPromotion(
            f"Adapter {line[-2]}, live before, is {route.stage if route else 'gone'} now; "
            "promote it instead."
        )
    return move_route(
        store,
        route,
        agent_name=agent_name,
        track=track,
        adapter_id=line[-2],
        to_stage=Stage.LIVE,
        previous=live.adapter_id,
        decision_id=None,
        who=who,
        reason=reason,
        run_id=run_id,
    )


def _succession(history: tuple[Promotion, ...]) -> list[str]:
    """Return the adapters that went live, oldest first, without those taken back."""
    line: list[str] = []
    for move in history:
        if move.to_stage is Stage.LIVE:
            if move.from_stage is Stage.RETIRED:  # only ``roll_back`` does that
                del line[-1:]
            else:
                line.append(move.adapter_id)
        elif move.from_stage is Stage.LIVE:
            del line[-1:]
    return line


def check_decision(
    decision: Decision | None,
    adapter: Adapter,
    tracks: Iterable[Track],
    override_reason: str | None = None,
) -> Decision:
    """Return the decision, if it allows ``adapter`` to be asked anything on ``tracks``.

    Raises:
        IllegalPromotion: it does not, and nobody overrides it.
    """
    if decision is None:
        raise IllegalPromotion(f"Adapter {adapter.id} has no decision yet; evaluate it first.")
    if decision.adapter_id != adapter.id:
        raise IllegalPromotion(
            f"Decision {decision.id} is about {decision.adapter_id}, not {adapter.id}."
        )
    if decision.outcome != "SUCCESS" and not override_reason:
        open_gates = [gate.gate for gate in decision.gates if gate.verdict != "pass"]
        raise IllegalPromotion(
            f"Decision {decision.id} is {decision.outcome}. Do what its next actions say, or "
            "give an override reason.",
            gates=tuple(dict.fromkeys(open_gates)),
        )
    unmeasured = sorted(set(tracks) - measured_tracks(decision))
    if unmeasured and not override_reason:
        raise IllegalPromotion(
            f"Decision {decision.id} says nothing about {' and '.join(unmeasured)}: no test row "
            "was of that track. Evaluate it there, or give an override reason."
        )
    return decision


def measured_tracks(decision: Decision) -> set[Track]:
    """Return the tracks that a decision has evidence of."""
    return {gate.track for gate in decision.gates if gate.track is not None}


def illegal_move(adapter_id: str, stage: Stage | None, to_stage: Stage) -> IllegalPromotion:
    """Return the error that says which moves are legal from ``stage``."""
    legal = ", ".join(LEGAL_MOVES[stage])
    hint = ""
    if to_stage is Stage.LIVE and stage in (None, Stage.CANDIDATE):
        hint = " Going live directly takes a decision of SUCCESS and a declared auto-approval."
    return IllegalPromotion(
        f"Adapter {adapter_id} cannot go from {stage or 'no stage'} to {to_stage}; "
        f"from there it may go to: {legal}.{hint}"
    )


def move_route(
    store: Store,
    route: Route | None,
    *,
    agent_name: str,
    track: Track,
    adapter_id: str,
    to_stage: Stage,
    previous: str | None,
    decision_id: str | None,
    who: str,
    reason: str,
    share: float | None = None,
    limits: TrafficLimits | None = None,
    run_id: str | None = None,
) -> Route:
    """Carry out a move that was found legal, if ``route`` is still as it was seen.

    Raises:
        StoreError: somebody else moved it, or whoever was live, meanwhile.
    """
    version = route.version if route else None
    share = share if to_stage is Stage.CANARY else None
    content = {
        "agent_name": agent_name,
        "track": track,
        "adapter_id": adapter_id,
        "to_stage": to_stage,
        "decision_id": decision_id,
        "version": version,
    }
    promotion = Promotion(
        id=content_id("promotion", content),
        agent_name=agent_name,
        track=track,
        adapter_id=adapter_id,
        to_stage=to_stage,
        decision_id=decision_id,
        from_stage=route.stage if route else None,
        previous_adapter_id=previous if to_stage is Stage.LIVE else None,
        who=who,
        reason=reason,
        share=share,
        limits=limits,
        run_id=run_id,
    )
    moved = store.routes.move(promotion, version)
    log.info(
        "route moved agent=%s track=%s adapter=%s from=%s to=%s who=%s",
        agent_name,
        track,
        adapter_id,
        promotion.from_stage,
        to_stage,
        who,
    )
    return moved
