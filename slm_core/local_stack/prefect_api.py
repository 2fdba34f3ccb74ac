"""The few questions that the stack has for its Prefect server, over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import httpx

from slm_core.errors import StackError

POOLS: Mapping[str, int | None] = {"gpu": 1, "cpu": None}
"""Work pool to the number of runs that its worker takes at once; None means any. The pools
themselves are declared in ``deployments/pools.yaml``."""


def answers(api_url: str) -> bool:
    """Whether the server is up."""
    try:
        return httpx.get(f"{api_url}/health", timeout=2).is_success
    except httpx.TransportError:
        return False


def is_online(api_url: str, pool: str, worker: str, since: float, login: str | None) -> bool:
    """Whether ``worker`` of ``pool`` has reported to the server after ``since``.

    A server that does not answer, or not well, says no.

    Args:
        api_url: address of the API.
        pool: work pool.
        worker: its name.
        since: seconds since the epoch.
        login: ``user:password``; None where the server has none.

    Raises:
        StackError: the server has another login.
    """
    user, _, password = (login or "").partition(":")
    try:
        found = httpx.post(
            f"{api_url}/work_pools/{pool}/workers/filter",
            json={},
            timeout=10,
            auth=(user, password) if login else None,
        )
    except httpx.TransportError:
        return False
    if found.status_code == httpx.codes.UNAUTHORIZED:
        raise StackError(
            "The Prefect server runs with another login than PREFECT_SERVER_API_AUTH_STRING. Run "
            "`make down`, then `make up`."
        )
    if not found.is_success:
        return False
    beats = {row["name"]: row["last_heartbeat_time"] for row in found.json()}
    beat = beats.get(worker)
    return beat is not None and datetime.fromisoformat(beat).timestamp() > since
