"""From a request to moved routes, so that a run killed at any moment finishes what it began.

A request is stored before anybody is asked, with each route as it was then, and who was live.
The answer is stored before any route moves. Carrying it out compares and sets each route by
what was stored, so that doing it again changes nothing, and a request that others have
overtaken moves nothing.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from slm_core.errors import IllegalPromotion, StoreError
from slm_core.records import (
    Adapter,
    Approval,
    ApprovalState,
    PlannedMove,
    RiskTier,
    Route,
    Stage,
    Track,
    content_id,
    utc_now,
)
from slm_core.serving.evidence import evidence_for, refuse_weak, require_evidence
from slm_core.serving.promotion import (
    LEGAL_MOVES,
    check_decision,
    illegal_move,
    move_route,
)
from slm_core.serving.spec import PromotionSpec

if TYPE_CHECKING:
    from slm_core.store import Store

_NEXT: dict[Stage | None, Stage] = {
    None: Stage.SHADOW,
    Stage.CANDIDATE: Stage.SHADOW,
    Stage.SHADOW: Stage.CANARY,
    Stage.CANARY: Stage.LIVE,
}


def request_approval(
    store: Store,
    spec: PromotionSpec,
    *,
    run_id: str,
    adapter_id: str | None = None,
    agent_name: str | None = None,
    track: Track | None = None,
    to_stage: Stage | None = None,
) -> Approval:
    """Return what ``run_id`` asks: stored now, or when it ran before.

    Args:
        store: where routes and requests are kept.
        spec: tiers, limits, and how long to wait.
        run_id: the flow run that asks.
        adapter_id: the adapter; None takes the newest candidate.
        agent_name: whose calls; None takes every agent for whom the adapter is as far as it is
            for the one that is furthest behind.
        track: which of them; None as for ``agent_name``.
        to_stage: where to; None takes the next of shadow, canary and live.

    Raises:
        IllegalPromotion: there is no candidate, the move is not legal, the decision is not
            SUCCESS, or the traffic so far does not bear the step out.
        RecordNotFound: there is no such adapter.
    """
    asked = store.approvals.of_run(run_id)
    if asked is not None:
        return asked
    adapter = store.adapters.get(adapter_id) if adapter_id else _newest_candidate(store)
    decisions = store.decisions.of_adapter(adapter.id)
    routes = _routes(store, adapter, agent_name, track)
    tracks: set[Track] = {of_track for _, of_track, _ in routes}
    decision = check_decision(decisions[-1] if decisions else None, adapter, tracks)
    moves = [
        _plan(store, spec, adapter, agent, of_track, route, to_stage)
        for agent, of_track, route in routes
    ]
    now = utc_now()
    return store.approvals.save(
        Approval(
            id=content_id("approval", run_id),
            run_id=run_id,
            adapter_id=adapter.id,
            decision_id=decision.id,
            moves=tuple(moves),
            share=spec.canary_share,
            limits=spec.limits,
            expires_at=now + timedelta(days=spec.approval_days),
            created_at=now,
        )
    )


def needs_person(approval: Approval) -> bool:
    """Whether any of its moves is of a tier that no rule may approve."""
    return any(move.risk is not RiskTier.LOW for move in approval.moves)


def carry_out(store: Store, approval: Approval) -> list[Route]:
    """Make the moves of an approved request; those made before stay. Return the routes.

    A person may take days to answer, so the traffic is looked at once more. What it refuses is
    noted in the request, until a later call makes those moves.

    Raises:
        IllegalPromotion: the request was not approved, or the traffic now fails a gate. The
            moves that were still possible are made; so they are before a StoreError.
        StoreError: a route, or who is live, has changed since the request was made.
    """
    if approval.state is not ApprovalState.APPROVED:
        raise IllegalPromotion(f"Request {approval.id} is {approval.state}, not approved.")
    routes: list[Route] = []
    problems: list[StoreError | IllegalPromotion] = []
    for move in approval.moves:
        seen = None
        if move.from_stage is not None and move.version is not None:
            seen = Route(
                agent_name=move.agent_name,
                track=move.track,
                adapter_id=approval.adapter_id,
                stage=move.from_stage,
                version=move.version,
            )
        try:
            _look_again(store, approval, move)
            route = move_route(
                store,
                seen,
                agent_name=move.agent_name,
                track=move.track,
                adapter_id=approval.adapter_id,
                to_stage=move.to_stage,
                previous=move.live_adapter_id,
                decision_id=approval.decision_id,
                who=approval.who or "",
                reason=approval.reason or "",
                share=approval.share,
                limits=approval.limits,
                run_id=approval.run_id,
            )
        except (StoreError, IllegalPromotion) as error:
            if error.retryable:
                raise
            problems.append(error)
        else:
            routes.append(route)
    refusals = [error for error in problems if isinstance(error, IllegalPromotion)]
    said = " ".join(error.message for error in refusals) or None
    # A route that others moved meanwhile says nothing about what the traffic said before.
    if said != approval.refused and (refusals or not problems):
        store.approvals.note_refusal(approval.id, said)
    if problems:
        first = (refusals or problems)[0]
        raise type(first)(
            f"{len(problems)} of {len(approval.moves)} moves of request {approval.id} were not "
            f"made: {first.message}",
            moved=[f"{route.agent_name}/{route.track}" for route in routes],
        )
    return routes


def _look_again(store: Store, approval: Approval, move: PlannedMove) -> None:
    """Refuse a move that is still to be made, if the traffic has turned against it."""
    route = store.routes.find(move.agent_name, move.track, approval.adapter_id)
    another_share = move.from_stage is move.to_stage is Stage.CANARY  # no further step
    if route is not None and route.version == move.version and not another_share:
        gates = evidence_for(store, route, move.to_stage, approval.limits)
        refuse_weak(route, move.to_stage, gates)


def _newest_candidate(store: Store) -> Adapter:
    waiting = {r.adapter_id for r in store.routes.list() if r.stage is Stage.CANDIDATE}
    if not waiting:
        raise IllegalPromotion(
            "No adapter waits as a candidate. Name one that is in shadow or canary to take it "
            "further: `slm routes list`."
        )
    return max((store.adapters.get(one) for one in waiting), key=lambda one: one.created_at)


def _routes(
    store: Store, adapter: Adapter, agent_name: str | None, track: Track | None
) -> list[tuple[str, Track, Route | None]]:
    if agent_name is not None and track is not None:
        return [(agent_name, track, store.routes.find(agent_name, track, adapter.id))]
    mine = [
        route
        for route in store.routes.list()
        if route.adapter_id == adapter.id
        and agent_name in (None, route.agent_name)
        and track in (None, route.track)
    ]
    for stage in (Stage.CANDIDATE, Stage.SHADOW, Stage.CANARY):
        found: list[tuple[str, Track, Route | None]] = [
            (r.agent_name, r.track, r) for r in mine if r.stage is stage
        ]
        if found:
            return found
    raise IllegalPromotion(
        f"Adapter {adapter.id} has no route on its way to live"
        + (f" for agent {agent_name!r}" if agent_name else "")
        + ". Name agent and track to begin one."
    )


def _plan(
    store: Store,
    spec: PromotionSpec,
    adapter: Adapter,
    agent_name: str,
    track: Track,
    route: Route | None,
    to_stage: Stage | None,
) -> PlannedMove:
    if track not in adapter.tracks:
        raise IllegalPromotion(f"Adapter {adapter.id} was not trained for the track {track!r}.")
    stage = route.stage if route else None
    to = to_stage or _NEXT.get(stage)
    if to is None or to not in LEGAL_MOVES[stage] or to in (Stage.CANDIDATE, Stage.RETIRED):
        raise illegal_move(adapter.id, stage, to or Stage.LIVE)
    gates = evidence_for(store, route, to, spec.limits)
    if not (stage is Stage.CANARY and to is Stage.CANARY):  # another share is no further step
        require_evidence(route, to, gates)
    live = store.routes.live(agent_name, track)
    return PlannedMove(
        agent_name=agent_name,
        track=track,
        from_stage=stage,
        version=route.version if route else None,
        to_stage=to,
        live_adapter_id=live.adapter_id if live else None,
        risk=spec.tier(agent_name, track),
        evidence=gates,
    )
