"""A whole stack at work: a training is cancelled, or its flow is killed, and nothing is lost.

``python -m benchmarks.chaos`` does the same to every part, many times.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.chaos import new_claim, run_of, strike, trainers
from benchmarks.chaos_stack import Service
from slm_core.records import ClaimState, RunState
from slm_core.training.events import read_events

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
GONE_SECONDS = 15.0
SLOW_SECONDS = 240.0


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    # Not pytest's folder: PostgreSQL runs as another user when we are root.
    folder = Path(tempfile.mkdtemp(prefix="slm-operations-"))
    folder.chmod(0o755)
    with Service(folder, epochs=60) as service:
        yield service
    shutil.rmtree(folder)


def eventually(check: Callable[[], Any], seconds: float = SLOW_SECONDS) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.1)
    return found


def test_a_cancelled_training_saves_and_has_left_within_15_seconds(service: Service) -> None:
    claim = new_claim(service)
    run_id = eventually(lambda: run_of(service, claim))
    training = service.home / "runs" / run_id / "training"
    eventually(lambda: len(read_events(training / "events.jsonl")) > 2)
    (trainer,) = trainers(service, run_id)
    saved = set(training.glob("checkpoints/*"))

    cancelling = {"state": {"type": "CANCELLING", "name": "Cancelling"}}  # as the button does
    service.ask("POST", f"/flow_runs/{run_id}/set_state", cancelling)
    began = time.monotonic()
    eventually(lambda: not psutil.pid_exists(trainer), GONE_SECONDS)
    assert time.monotonic() - began < GONE_SECONDS

    eventually(lambda: service.get(f"/flow_runs/{run_id}")["state"]["type"] == "CANCELLED")
    assert set(training.glob("checkpoints/*")) - saved
    assert service.order(run_id)["state"] == RunState.INTERRUPTED
    with service.store() as store:
        assert store.claims.get(claim.id).state is ClaimState.RELEASED
        (run,) = store.runs.list()
        assert [attempt.fault and attempt.fault.kind for attempt in run.attempts] == ["interrupted"]

    service.start("resume/run", run_id=run_id)  # on-call changed its mind

    def done() -> bool:
        with service.store() as store:
            return store.claims.get(claim.id).state is ClaimState.DONE

    eventually(done)
    with service.store() as store:
        (run,) = store.runs.list()
    assert run.state is RunState.COMPLETED
    assert run.attempts[1].first_step > 0


def test_a_killed_flow_takes_its_trainer_along_and_goes_on_by_itself(service: Service) -> None:
    row = strike(service, 1, "flow", random.Random(0), patience=SLOW_SECONDS, stage="training")
    assert row.problems == []
    assert (row.noticed, row.finished) == (
        "the Prefect worker",
        "the automation, by resume/run",
    )
    assert row.attempts == 2
