"""The few questions that the stack has for its Prefect server, over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import httpx

POOLS: Mapping[str, int | None] = {"gpu": 1, "cpu": None}
"""Work pool to the number of runs that its worker takes at once; None means any. The pools
themselves are declared in ``deployments/pools.yaml``."""


def answers(api_url: str) -> bool:
    """Whether the server is up."""
    try:
        return httpx.get(f"{api_url}/health", timeout=2).is_success
    except httpx.TransportError:
        return False


def is_online(api_url: str, pool: str, worker: str, since: float) -> bool:
    """Whether ``worker`` of ``pool`` has reported to the server after ``since``.

    ``since`` is in seconds since the epoch.
    """
    found = httpx.post(f"{api_url}/work_pools/{pool}/workers/filter", json={}, timeout=10)
    beats = {row["name"]: row["last_heartbeat_time"] for row in found.raise_for_status().json()}
    beat = beats.get(worker)
    return beat is not None and datetime.fromisoformat(beat).timestamp() > since
