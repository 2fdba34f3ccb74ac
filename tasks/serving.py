"""A winning adapter to the live route of its agents."""

from __future__ import annotations

from slm_core.dataset import read_split
from slm_core.records import Adapter, Dataset, Decision, Route, Stage, Track
from slm_core.serving import promote
from tasks._wiring import opened_store, step


@step("promote the adapter")
def promote_adapter(
    adapter: Adapter, decision: Decision, dataset: Dataset, run_id: str, *, live: bool
) -> list[Route]:
    """Put the adapter on the route of every agent it was trained for: live, or as candidate."""
    agents: set[tuple[str, Track]] = {
        (row.tags["agent_name"], row.track)
        for row in read_split(dataset.path, "train")
        if row.track in adapter.tracks
    }
    with opened_store() as store:
        return [
            promote(
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
            for agent, track in sorted(agents)
        ]
