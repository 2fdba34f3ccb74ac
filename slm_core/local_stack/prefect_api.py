"""The few questions that the stack has for its Prefect server, over HTTP."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import httpx

from slm_core.errors import StackError

POOL = "slm"
QUEUES: Mapping[str, int | None] = {"gpu": 1, "control": None}
"""Queue to the number of runs that it lets through at once; None means any."""


def answers(api_url: str) -> bool:
    """Whether the server is up."""
    try:
        return httpx.get(f"{api_url}/health", timeout=2).is_success
    except httpx.TransportError:
        return False


def ensure_pool(api_url: str, template: Path) -> None:
    """Create the process pool ``slm`` and its queues unless they are there.

    Raises:
        StackError: the server refused.
    """
    pool = f"{api_url}/work_pools/{POOL}"
    job_template = json.loads(template.read_text())
    body = {"name": POOL, "type": "process", "base_job_template": job_template}
    _ensure(pool, f"{api_url}/work_pools/", body)
    for name, limit in QUEUES.items():
        queue = {"name": name, "concurrency_limit": limit}
        _ensure(f"{pool}/queues/{name}", f"{pool}/queues", queue)


def is_online(api_url: str, worker: str, since: float) -> bool:
    """Whether ``worker`` has reported to the server after ``since`` (seconds since the epoch)."""
    found = httpx.post(f"{api_url}/work_pools/{POOL}/workers/filter", json={}, timeout=10)
    beats = {row["name"]: row["last_heartbeat_time"] for row in found.raise_for_status().json()}
    beat = beats.get(worker)
    return beat is not None and datetime.fromisoformat(beat).timestamp() > since


def _ensure(address: str, collection: str, body: Mapping[str, object]) -> None:
    if httpx.get(address, timeout=30).status_code != httpx.codes.NOT_FOUND:
        return
    answer = httpx.post(collection, json=body, timeout=30)
    if not answer.is_success:
        raise StackError(f"Prefect refused {collection}: {answer.status_code} {answer.text}")
