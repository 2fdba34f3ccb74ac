"""Ingests race on full batches while the Prefect server dies: each batch starts one retraining.

    python -m benchmarks.threshold_race                 # 8 ingests, 1,000 examples, 2 restarts

Eight ingest processes drain one spool into one PostgreSQL store, where every call lies in two
files. In each round the Prefect server is killed as soon as a claim was made, so that some
retrainings are submitted, some are not, and some are submitted without anybody's noting it; then
it is started again. In the last round all submissions are also sent a second time. No worker runs,
so that the retrainings only wait: what is counted is how many there are.

Exits with 1 unless each batch became one claim and one run of ``retrain/on-threshold``.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from slm_core.local_stack.ports import free_port
from slm_core.local_stack.postgres import ensure_database, throwaway_postgres
from slm_core.local_stack.prefect_api import answers
from slm_core.local_stack.processes import ProcessId, start, stop, wait_until
from slm_core.store import open_store
from slm_core.testing.records import make_call

ROOT = Path(__file__).parents[1]
INGEST = "from flows.ingest_calls import ingest_calls; ingest_calls()"
DEPLOY = """
from flows.retrain_student import retrain_student
retrain_student.to_deployment("on-threshold").apply()
"""
AGAIN = """
import sys
from prefect.deployments import run_deployment
for claim in sys.argv[1:]:
    run_deployment("retrain/on-threshold", parameters={"claim_id": claim, "reason": "again"},
                   timeout=0, as_subflow=False, idempotency_key=f"retrain-{claim}-0")
"""
_TIMEOUT_SECONDS = 240.0


class Outcome(NamedTuple):
    """What a race left."""

    calls: int
    waiting: int
    """Usable calls that no claim holds."""
    claims: int
    calls_per_claim: tuple[int, ...]
    runs: int
    """Runs of ``retrain/on-threshold``."""
    claims_with_a_run: int
    killed_ingests: int
    """Ingests that failed because the server was away."""
    restarts: int
    seconds: float


class Place(NamedTuple):
    """Where the race takes place."""

    folder: Path
    environment: dict[str, str]
    store_url: str
    port: int

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"


def race(
    folder: Path, postgres_url: str, *, ingests: int, calls: int, threshold: int, restarts: int
) -> Outcome:
    """Run the race on databases of its own in the server behind ``postgres_url``."""
    began = time.monotonic()
    place = _prepare(folder, postgres_url, threshold)
    rounds = restarts + 1
    with _server(place) as server:
        _run(place, DEPLOY)
        failed = 0
        for number in range(rounds):
            first, last = calls * number // rounds, calls * (number + 1) // rounds
            _spool(place, range(first, last), ingests, number)
            racing = [_begin(place, INGEST) for _ in range(ingests)]
            if number < restarts:
                _wait_for_claims(place, (first // threshold) + 1, racing)
                server.kill()
            failed += sum(process.wait(_TIMEOUT_SECONDS) != 0 for process in racing)
            if number < restarts:
                server.start()
        # What was left by those that failed, and all submissions a second time.
        for process in [_begin(place, INGEST) for _ in range(ingests)]:
            process.wait(_TIMEOUT_SECONDS)
        with open_store(place.store_url) as store:
            claims = store.claims.list()
        again = [_begin(place, AGAIN, *(claim.id for claim in claims)) for _ in range(2)]
        for process in again:
            if process.wait(_TIMEOUT_SECONDS) != 0:
                raise RuntimeError(f"a second submission failed; see {folder / 'log'}")
        runs = _runs(place)
    with open_store(place.store_url) as store:
        held = tuple(sum(1 for _ in store.calls.select(claim_id=claim.id)) for claim in claims)
        return Outcome(
            calls=store.calls.count(),
            waiting=store.calls.waiting(),
            claims=len(claims),
            calls_per_claim=held,
            runs=len(runs),
            claims_with_a_run=len(Counter(run["parameters"]["claim_id"] for run in runs)),
            killed_ingests=failed,
            restarts=restarts,
            seconds=round(time.monotonic() - began, 1),
        )


def _prepare(folder: Path, postgres_url: str, threshold: int) -> Place:
    base = postgres_url.rsplit("/", 1)[0]
    mark = f"{random.SystemRandom().randrange(16**8):08x}"
    for name in (f"race_{mark}", f"race_prefect_{mark}"):
        ensure_database(postgres_url, name)
    port = free_port(random.SystemRandom().randint(20_000, 30_000))
    prefect = base.replace("+psycopg", "+asyncpg") + f"/race_prefect_{mark}"
    ours = {
        "SLM_HOME": str(folder / "home"),
        "SLM_DATABASE_URL": f"{base}/race_{mark}",
        "SLM_RETRAIN_THRESHOLD": str(threshold),
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": prefect,
        "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_CLIENT_MAX_RETRIES": "1",
        "PATH": os.defpath,
        "HOME": str(folder),
    }
    (folder / "home" / "spool").mkdir(parents=True)
    with open_store(ours["SLM_DATABASE_URL"]):
        pass  # the tables
    return Place(folder, ours, ours["SLM_DATABASE_URL"], port)


class _Server:
    """A Prefect server that can be killed and started again."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._process: ProcessId | None = None
        self.start()

    def start(self) -> None:
        place, log = self._place, self._place.folder / "server.log"
        command = [sys.executable, "-m", "prefect", "server", "start"]
        address = ["--host", "127.0.0.1", "--port", str(place.port)]
        self._process = start(
            [*command, *address], log, environment=place.environment, cwd=place.folder
        )
        wait_until(
            lambda _: answers(place.api),
            self._process,
            log,
            what="the Prefect server",
            timeout_seconds=_TIMEOUT_SECONDS,
        )

    def kill(self) -> None:
        if self._process is not None:
            stop(self._process, by=signal.SIGKILL, grace_seconds=10)


@contextmanager
def _server(place: Place) -> Iterator[_Server]:
    server = _Server(place)
    try:
        yield server
    finally:
        server.kill()


def _spool(place: Place, numbers: range, ingests: int, number: int) -> None:
    """Leave each call in two files, the files overlapping each other."""
    lines = [make_call(n).model_dump_json() + "\n" for n in numbers]
    size = max(1, len(lines) // ingests)
    for part in range(0, len(lines), size):
        ring = [*lines[part:], *lines[:part]]
        name = f"round-{number}-{part:06d}"
        file = place.folder / "home" / "spool" / name
        file.write_text("".join(ring[: 2 * size]))
        file.rename(file.with_suffix(".jsonl"))


def _begin(place: Place, code: str, *arguments: str) -> subprocess.Popen[bytes]:
    with (place.folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            cwd=ROOT,
            env=place.environment,
            stdout=log,
            stderr=log,
        )


def _run(place: Place, code: str) -> None:
    if _begin(place, code).wait(_TIMEOUT_SECONDS) != 0:
        raise RuntimeError((place.folder / "log").read_text()[-3000:])


def _wait_for_claims(place: Place, count: int, racing: Sequence[subprocess.Popen[bytes]]) -> None:
    with open_store(place.store_url) as store:
        while len(store.claims.list()) < count:
            if all(process.poll() is not None for process in racing):
                raise RuntimeError((place.folder / "log").read_text()[-3000:])
            time.sleep(0.01)


def _runs(place: Place) -> list[dict[str, Any]]:
    wanted = {"flows": {"name": {"any_": ["retrain"]}}}
    return httpx.post(f"{place.api}/flow_runs/filter", json=wanted, timeout=30).json()


def main() -> int:
    """Read the command line, race, and count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ingests", type=int, default=8)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--threshold", type=int, default=100)
    parser.add_argument("--restarts", type=int, default=2)
    said = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="slm-race-") as folder, throwaway_postgres() as url:
        outcome = race(
            Path(folder),
            url,
            ingests=said.ingests,
            calls=said.calls,
            threshold=said.threshold,
            restarts=said.restarts,
        )
    for name, value in outcome._asdict().items():
        print(f"{name:18} {value}")
    wanted = said.calls // said.threshold
    good = outcome.claims == outcome.runs == outcome.claims_with_a_run == wanted
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
