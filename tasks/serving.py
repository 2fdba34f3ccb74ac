"""A winning adapter to the live route of its agents."""

from __future__ import annotations

from slm_core.records import Adapter, Claim, Decision, Route, Stage, Track
from slm_core.serving import promote
from tasks._wiring import opened_store, step


@step("promote the adapter")
def promote_adapter(
    adapter: Adapter, decision: Decision, claim: Claim, run_id: str, *, live: bool
) -> list[Route]:
    """Put the adapter on the route of every agent in the claim: live, or as a candidate."""
    with opened_store() as store:
        agents = {
            (call.agent_name, call.track)
            for call in store.calls.select(claim_id=claim.id)
            if call.track in adapter.tracks
        }
        return [
            _put(store_route=(agent, track), adapter=adapter, decision=decision, run_id=run_id,
                 live=live)
            for agent, track in sorted(agents)
            if track is not None
        ]  # fmt: skip


def _put(
    store_route: tuple[str, Track],
    adapter: Adapter,
    decision: Decision,
    run_id: str,
    *,
    live: bool,
) -> Route:
    agent, track = store_route
    with opened_store() as store:
        return promote(
            store,
            adapter=adapter,
            agent_name=agent,
            track=track,
            decision=decision,
            who=f"flow {run_id}",
            reason=f"decision {decision.id}: {decision.outcome}",
            to_stage=Stage.LIVE if live else Stage.CANDIDATE,
            auto_approve=live,
        )
