"""What one Prefect server takes: flow runs and events a second, and bytes for each run.

    python -m benchmarks.prefect_limits

A server on PostgreSQL of its own, as `make up` starts it, asked over HTTP by this process. A
"run" is what a worker and a flow make of one: created, pending, running, two task runs, eight
log lines, completed. No flow code runs, so the figures are those of the server alone.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil

from slm_core.local_stack import prefect_api
from slm_core.local_stack.ports import free_port
from slm_core.local_stack.postgres import ensure_database, throwaway_postgres

Client = httpx.AsyncClient


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    options = parser.parse_args()
    with throwaway_postgres(durable=True) as url, tempfile.TemporaryDirectory() as home:
        ensure_database(url, "prefect")
        database = url.rsplit("/", 1)[0] + "/prefect"
        port = free_port(random.randint(20_000, 30_000))
        address = f"http://127.0.0.1:{port}/api"
        server = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)],
            env=dict(os.environ)
            | {
                "PREFECT_HOME": home,
                "PREFECT_API_URL": address,
                "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
                "DO_NOT_TRACK": "1",
                "PREFECT_SERVER_DATABASE_CONNECTION_URL": database.replace("psycopg", "asyncpg"),
            },
            stdout=(Path(home) / "log").open("w"),
            stderr=subprocess.STDOUT,
        )
        try:
            give_up = time.monotonic() + 180
            while not prefect_api.answers(address):
                if time.monotonic() > give_up or server.poll() is not None:
                    raise SystemExit(f"no server: {(Path(home) / 'log').read_text()[-2000:]}")
                time.sleep(0.5)
            asyncio.run(measure(address, database, options))
            memory = psutil.Process(server.pid).memory_info().rss / 1e6
            print(f"memory of the server: {memory:.0f} MB")
        finally:
            server.terminate()
            server.wait(timeout=60)


async def measure(address: str, database: str, options: argparse.Namespace) -> None:
    async with Client(base_url=address, timeout=120) as client:
        flow = (await client.post("/flows/", json={"name": "limit"})).raise_for_status().json()
        print(f"| what | clients | a second | ms: p50 / p95 | load {os.getloadavg()[0]:.1f} |")
        print("| --- | --: | --: | --: | --- |")
        for clients in options.clients:
            await timed(
                "flow runs created", options.runs, clients, lambda: create(client, flow["id"])
            )
        for clients in options.clients:
            before = rows(database)
            await timed("whole runs", options.runs, clients, lambda: run(client, flow["id"]))
            await asyncio.sleep(10)  # events are stored behind the answer
            after = rows(database)
            grown = {name: (after[name] - before[name]) / options.runs for name in after}
            print("  a run leaves " + ", ".join(f"{n:,.1f} {what}" for what, n in grown.items()))
        for clients in options.clients:
            await timed(
                "requests that send 50 events", options.runs // 4, clients, lambda: events(client)
            )


async def timed(what: str, times: int, clients: int, work: Callable[[], Awaitable[Any]]) -> None:
    """Do ``work`` so many times by so many clients at once, and print how fast it went."""
    took: list[float] = []
    left = iter(range(times))

    async def worker() -> None:
        for _ in left:
            began = time.perf_counter()
            await work()
            took.append((time.perf_counter() - began) * 1000)

    began = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(clients)))
    rate = times / (time.perf_counter() - began)
    took.sort()
    p50, p95 = took[len(took) // 2], took[len(took) * 95 // 100]
    print(f"| {what} | {clients} | {rate:,.1f} | {p50:,.0f} / {p95:,.0f} | |", flush=True)


async def create(client: Client, flow_id: str) -> str:
    body = {"flow_id": flow_id, "parameters": {"reason": "limit"}, "tags": ["limit"]}
    return (await client.post("/flow_runs/", json=body)).raise_for_status().json()["id"]


async def run(client: Client, flow_id: str) -> None:
    run_id = await create(client, flow_id)
    for state in ("PENDING", "RUNNING"):
        await _set_state(client, f"/flow_runs/{run_id}", state)
    for number in range(2):
        task = await client.post(
            "/task_runs/",
            json={"flow_run_id": run_id, "task_key": "step", "dynamic_key": str(number)},
        )
        task_id = task.raise_for_status().json()["id"]
        for state in ("PENDING", "RUNNING", "COMPLETED"):
            await _set_state(client, f"/task_runs/{task_id}", state)
    lines = [
        {
            "name": "slm_core",
            "level": 20,
            "message": f"line {number} of a run that says what it does",
            "timestamp": datetime.now(UTC).isoformat(),
            "flow_run_id": run_id,
        }
        for number in range(8)
    ]
    (await client.post("/logs/", json=lines)).raise_for_status()
    await _set_state(client, f"/flow_runs/{run_id}", "COMPLETED")


async def _set_state(client: Client, what: str, state: str) -> None:
    answer = await client.post(f"{what}/set_state", json={"state": {"type": state}})
    answer.raise_for_status()


async def events(client: Client) -> None:
    batch = [
        {
            "occurred": datetime.now(UTC).isoformat(),
            "event": "slm.captures.threshold-reached",
            "resource": {"prefect.resource.id": f"slm.claim.{uuid4()}"},
            "payload": {"calls": 100},
            "id": str(uuid4()),
        }
        for _ in range(50)
    ]
    (await client.post("/events", json=batch)).raise_for_status()


def rows(database: str) -> dict[str, int]:
    """Return how many events the server holds, and its bytes."""
    import psycopg

    libpq = database.replace("postgresql+psycopg", "postgresql")
    with psycopg.connect(libpq, autocommit=True) as connection:
        found = connection.execute(
            "SELECT (SELECT count(*) FROM events), pg_database_size(current_database())"
        ).fetchone()
        assert found is not None
        return {"events": found[0], "bytes": found[1]}


if __name__ == "__main__":
    main()
