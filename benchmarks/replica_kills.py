"""Kill API replicas and background services of a replicated Prefect, round after round.

    python -m benchmarks.replica_kills --rounds 10 --out replicas.json

What runs is docker/compose.yaml as processes (`slm_core.local_stack.composed`): the proxy, two
replicas, two sets of services, a worker, PostgreSQL and Redis. In each round a run logs a line
every half second; meanwhile one replica and one set of services are killed with SIGKILL, four
threshold events are sent, two before and two after, and one claim is started eight times at
once. Then what was killed is started again. All the while the API is asked ten times a second.

An event that the killed process was acting on is given to the other one, and may be acted on
twice: that is counted. Exits with 1 when a run, a line of its log or the run of an event is
missing, or when a claim or a time of the schedule has more than one run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from slm_core.local_stack.compose_file import PROGRAMS
from slm_core.local_stack.composed import Composed, composed
from slm_core.local_stack.postgres import throwaway_postgres
from slm_core.local_stack.redis_server import throwaway_redis

ROOT = Path(__file__).parents[1]
LINES = 20
FLOW = """
import time
from prefect import flow, get_run_logger

@flow(name="count")
def count(lines: int = 1) -> None:
    for number in range(lines):
        get_run_logger().info("line %d", number)
        time.sleep(0.5)
"""
DEPLOYMENTS = """
pull:
  - prefect.deployments.steps.set_working_directory:
      directory: "{{ $SLM_REPO }}"
deployments:
  - &count
    name: count
    entrypoint: flows/count_lines.py:count
    work_pool: {name: cpu}
  - <<: *count
    name: threshold
    work_pool: {name: nobody}
    triggers:
      - {type: event, posture: Reactive, threshold: 1, within: 0,
         expect: [slm.captures.threshold-reached], for_each: [prefect.resource.id]}
  - <<: *count
    name: claim
    work_pool: {name: nobody}
  - <<: *count
    name: schedule
    work_pool: {name: nobody}
    schedules: [{slug: often, interval: 30}]
"""


class Probe(threading.Thread):
    """Asks the API ten times a second; keeps what failed and the longest silence."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.asked = self.failed = 0
        self.longest_silence = 0.0
        self.over = threading.Event()
        self._url = url

    def run(self) -> None:
        answered = time.monotonic()
        with httpx.Client(timeout=30) as client:
            while not self.over.wait(0.1):
                self.asked += 1
                try:
                    client.get(f"{self._url}/ready").raise_for_status()
                except httpx.HTTPError:
                    self.failed += 1
                    continue
                now = time.monotonic()
                self.longest_silence = max(self.longest_silence, now - answered)
                answered = now


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill replicas of the Prefect server.")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="slm-replicas-"))
    print(f"files: {home}")
    with (
        throwaway_postgres() as postgres,
        throwaway_redis(str(home)) as redis,
        composed(ROOT, home, postgres, redis) as service,
    ):
        _prepare(service, home / "project")
        probe = Probe(service.api_url)
        probe.start()
        try:
            runs = [_round(service, number) for number in range(options.rounds)]
            problems = _problems(service, runs)
            triggered = len(_runs(service, "threshold"))
        finally:
            probe.over.set()
            probe.join()
    result = {
        "rounds": options.rounds,
        "killed": {"api replicas": options.rounds, "services": options.rounds},
        "requests": probe.asked,
        "requests failed": probe.failed,
        "longest silence, s": round(probe.longest_silence, 2),
        "events": 4 * options.rounds,
        "runs that they started": triggered,
        "problems": problems,
    }
    print(json.dumps(result, indent=2))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2))
    sys.exit(bool(problems))


def _prepare(service: Composed, project: Path) -> None:
    (project / "flows").mkdir(parents=True)
    (project / "flows" / "count_lines.py").write_text(FLOW)
    (project / "prefect.yaml").write_text(DEPLOYMENTS)
    for pool in ("cpu", "nobody"):
        service.ask("/work_pools/", {"name": pool, "type": "process"})
    subprocess.run(
        [str(PROGRAMS / "prefect"), "--no-prompt", "deploy", "--all"],
        cwd=project,
        env=service.environment("deployments", PREFECT_API_AUTH_STRING=service.login),
        check=True,
        capture_output=True,
    )
    service.start("worker-cpu", SLM_REPO=str(project), PREFECT_WORKER_QUERY_SECONDS="1")


def _round(service: Composed, number: int) -> str:
    """Kill one of each in the middle of a run; return the run's id once all is up again."""
    victims = (f"prefect-api-{number % 2 + 1}", f"prefect-services-{number // 2 % 2 + 1}")
    key = f"run-{number}"
    run = _start(service, "count", parameters={"lines": LINES}, idempotency_key=key)
    _eventually(lambda: len(_lines(service, run)) >= 3)
    _reach_threshold(service, 2)
    for victim in victims:
        service.kill(victim)
    with ThreadPoolExecutor(8) as threads:
        claim = {"idempotency_key": f"claim-{number}", "state": {"type": "PAUSED"}}
        for started in [threads.submit(_start, service, "claim", **claim) for _ in range(8)]:
            started.result()
    _reach_threshold(service, 2)
    _eventually(lambda: service.ask(f"/flow_runs/{run}")["state"]["type"] == "COMPLETED")
    service.start(victims[0])
    service.start("prefect-services", int(victims[1][-1]))
    service.wait(victims[0])
    print(f"round {number + 1}: killed {', '.join(victims)}; the run completed", flush=True)
    return run


def _problems(service: Composed, runs: list[str]) -> list[str]:
    """Return what is not as it should be; waits for the triggers, not for anything else."""
    problems: list[str] = []
    events = 4 * len(runs)
    deadline = time.monotonic() + 180
    while len(_runs(service, "threshold")) < events and time.monotonic() < deadline:
        time.sleep(1)
    time.sleep(5)  # one too many would come late as well
    if (found := len(_runs(service, "threshold"))) < events:
        problems.append(f"{found} runs of {events} events")
    for name, wanted in (("claim", len(runs)), ("count", len(runs))):
        found = len(_runs(service, name))
        if found != wanted:
            problems.append(f"{found} runs of {name}, not {wanted}")
    times = Counter(run["expected_start_time"] for run in _runs(service, "schedule"))
    if not times or max(times.values()) > 1:
        problems.append(f"scheduled: {times}")
    for run in runs:
        if _lines(service, run) != [f"line {number}" for number in range(LINES)]:
            problems.append(f"the log of {run} is not complete")
    return problems


def _reach_threshold(service: Composed, count: int) -> None:
    for _ in range(count):
        event = {
            "id": str(uuid4()),
            "event": "slm.captures.threshold-reached",
            "occurred": datetime.now(UTC).isoformat(),
            "resource": {"prefect.resource.id": f"slm.claim.{uuid4()}"},
        }
        service.ask("/events", [event])


def _start(service: Composed, name: str, **body: Any) -> str:
    deployment = service.ask(f"/deployments/name/count/{name}")
    return service.ask(f"/deployments/{deployment['id']}/create_flow_run", body)["id"]


def _runs(service: Composed, name: str) -> list[dict[str, Any]]:
    return service.ask("/flow_runs/filter", {"deployments": {"name": {"any_": [name]}}})


def _lines(service: Composed, run: str) -> list[str]:
    body = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC"}
    logs = service.ask("/logs/filter", body)
    return [log["message"] for log in logs if log["message"].startswith("line ")]


def _eventually(check: Callable[[], bool], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            raise TimeoutError(f"Not within {seconds:.0f} s.")
        time.sleep(0.5)


if __name__ == "__main__":
    main()
