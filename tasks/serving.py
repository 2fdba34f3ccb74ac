"""A winning adapter to the live route of its agents."""

from __future__ import annotations

import logging

from slm_core.dataset import read_split
from slm_core.records import Adapter, Dataset, Decision, Route, Stage, Track
from slm_core.serving import measured_tracks, promote
from tasks._wiring import opened_store, step

log = logging.getLogger(__name__)

_FURTHER = (Stage.SHADOW, Stage.CANARY, Stage.LIVE)


@step("promote the adapter")
def promote_adapter(
    adapter: Adapter, decision: Decision, dataset: Dataset, run_id: str, *, live: bool
) -> list[Route]:
    """Put the adapter on the route of every agent it was trained for: live, or as candidate.

    A track that no test row was of stays with the teacher, and so does everything where the
    decision was about another arm.
    Where a route went live after this run's dataset was built, the adapter stays a candidate:
    it has not been compared with what answers there now.
    """
    if decision.adapter_id != adapter.id:
        log.warning("decision is not about adapter=%s: no route", adapter.id)
        return []
    tracks = measured_tracks(decision).intersection(adapter.tracks)
    for track in set(adapter.tracks) - tracks:
        log.warning("track not measured, so no route adapter=%s track=%s", adapter.id, track)
    agents: set[tuple[str, Track]] = {
        (row.tags["agent_name"], row.track)
        for row in read_split(dataset.path, "train")
        if row.track in tracks
    }
    routes: list[Route] = []
    with opened_store() as store:
        for agent, track in sorted(agents):
            now = store.routes.live(agent, track)
            overtaken = (
                now is not None
                and now.adapter_id != adapter.id
                and now.updated_at > dataset.created_at
            )
            if live and overtaken:
                log.warning("route is newer than this run agent=%s track=%s", agent, track)
            to_live = live and not overtaken
            route = store.routes.find(agent, track, adapter.id)
            if route is not None and not to_live and route.stage in _FURTHER:
                # A person let it go on, before this run was killed and began again.
                routes.append(route)
                continue
            routes.append(
                promote(
                    store,
                    adapter=adapter,
                    agent_name=agent,
                    track=track,
                    decision=decision,
                    who=f"flow {run_id}",
                    reason=f"decision {decision.id}: {decision.outcome}",
                    to_stage=Stage.LIVE if to_live else Stage.CANDIDATE,
                    auto_approve=to_live,
                )
            )
    return routes
