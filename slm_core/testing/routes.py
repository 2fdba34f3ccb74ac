"""Put adapters on routes, as somebody would who has a good decision for each."""

from __future__ import annotations

from typing import Any

from slm_core.records import Adapter, Route, Stage, Track
from slm_core.serving import promote
from slm_core.store import Store
from slm_core.testing.records import make_adapter, make_decision


def move(
    store: Store,
    to: Stage,
    agent: str = "desk",
    *,
    adapter: Adapter | None = None,
    track: Track = "toolcall",
    **options: Any,
) -> Route:
    """Move ``make_adapter()``, or another one, to a stage; ``options`` are those of ``promote``."""
    adapter = store.adapters.save(adapter or make_adapter())
    values = {"decision": make_decision(adapter_id=adapter.id), "who": "setup", "reason": "setup"}
    return promote(
        store,
        adapter=adapter,
        agent_name=agent,
        track=track,
        to_stage=to,
        **(values | options),
    )
