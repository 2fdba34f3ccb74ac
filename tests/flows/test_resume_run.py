"""A flow process is killed in the middle of its training; whoever resumes ends where it would have.

The flow runs in a process of its own that is really killed; the Prefect server is a real one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import get_client
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_API_URL
from typer.testing import CliRunner

from flows.resume_run import resume_run
from flows.train_adapter import train_from_preset
from slm_core.cli.app import app
from slm_core.dataset import DatasetSpec
from slm_core.errors import RecordNotFound, RunBusy
from slm_core.presets import RetrainSpec, TrainSpec
from slm_core.records import ClaimState, RunState
from slm_core.report import ReportInput
from slm_core.training.events import read_events
from slm_core.training.orders import Order
from tasks import _wiring
from tasks._wiring import order_book

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
DEADLINE_SECONDS = 90.0
BEGIN = """
import sys
from pathlib import Path
from flows.retrain_student import retrain_student
from flows.train_adapter import train_from_preset
from slm_core.presets import RetrainSpec, TrainSpec
flow, run_id, plan = sys.argv[1], sys.argv[2], Path(sys.argv[3]).read_text()
if flow == "train":
    train_from_preset(run_id=run_id, overrides=TrainSpec.model_validate_json(plan))
else:
    retrain_student(run_id=run_id, overrides=RetrainSpec.model_validate_json(plan))
"""


@pytest.fixture
def service(make_service: Callable[[], Any]) -> Iterator[Any]:
    service = make_service()
    service.claimed()
    yield service
    _wiring._settings.clear()


@pytest.fixture(scope="module")
def unbroken(make_service: Callable[[], Any]) -> str:
    """Id of the adapter that the plan makes when nothing happens."""
    service = make_service()
    service.configure()
    service.claimed()
    (adapter,) = train_from_preset(run_id="unbroken", overrides=train_plan(service))
    return adapter.id


def train_plan(service: Any) -> TrainSpec:
    return TrainSpec(
        training=service.plan(epochs=20).training,
        rows_from="calls",
        dataset=DatasetSpec(min_examples=10, min_split_rows=1),
    )


def environment(service: Any) -> dict[str, str]:
    ours = {
        "SLM_HOME": str(service.folder),
        "SLM_RETRAIN_THRESHOLD": "20",
        "SLM_TEACHER_MODEL": "gpt-4o",
        "AZURE_ENDPOINT": service.teacher.base_url,
        "AZURE_API_KEY": "key",
        "PREFECT_API_URL": str(PREFECT_API_URL.value()),
    }
    return dict(os.environ) | ours


def kill_in_training(service: Any, flow: str, plan: TrainSpec | RetrainSpec) -> None:
    """Begin run ``run-1`` in a process of its own and kill that while it trains."""
    file = service.folder / "plan.json"
    file.write_text(plan.model_dump_json())
    events = service.folder / "runs" / "run-1" / "training" / "events.jsonl"
    with _process(service, flow, file) as process:
        give_up = time.monotonic() + DEADLINE_SECONDS
        while len(read_events(events)) < 3:
            assert process.poll() is None, (service.folder / "flow.log").read_text()[-3000:]
            assert time.monotonic() < give_up, (service.folder / "flow.log").read_text()[-3000:]
            time.sleep(0.01)
        process.kill()
        process.wait()
    assert not (service.folder / "runs" / "run-1" / "training" / "adapter").exists()


@contextmanager
def _process(service: Any, flow: str, plan: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", BEGIN, flow, "run-1", str(plan)]
    with (service.folder / "flow.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(service), stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_killed_training_goes_on_by_the_flow_and_makes_the_adapter_of_an_unbroken_run(
    unbroken: str, service: Any
) -> None:
    service.configure()
    kill_in_training(service, "train", train_plan(service))
    killed = order_book().get("run-1")
    assert killed.state is RunState.RUNNING
    assert killed.flow_run_id is not None

    (adapter,) = resume_run()

    assert adapter.id == unbroken
    resumed = order_book().get("run-1")
    assert resumed.state is RunState.COMPLETED
    assert resumed.flow_run_id not in (None, killed.flow_run_id)
    with service.store() as store:
        run = store.runs.get("run-1")
    assert run.state is RunState.COMPLETED
    assert len(run.attempts) == 2
    assert run.attempts[1].first_step > 0
    with get_client(sync_client=True) as client:
        old = client.read_flow_run(UUID(killed.flow_run_id))
    assert old.state is not None
    assert old.state.type is StateType.CRASHED
    with pytest.raises(RecordNotFound):
        resume_run()


def test_a_killed_training_goes_on_in_a_terminal_too(
    unbroken: str, service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.configure()
    kill_in_training(service, "train", train_plan(service))
    monkeypatch.setenv("SLM_HOME", str(service.folder))

    shown = CliRunner().invoke(app, ["train", "resume"])

    assert shown.exit_code == 0, f"{shown.output}\n{shown.exception!r}"
    assert unbroken in shown.stdout
    assert order_book().get("run-1").state is RunState.COMPLETED


def test_a_killed_retraining_goes_on_to_its_verdict_with_the_claim_it_holds(service: Any) -> None:
    kill_in_training(service, "retrain", service.plan(epochs=20))
    asked = len(service.teacher.received)

    report = resume_run("run-1")

    assert isinstance(report, ReportInput)
    assert report.training is not None
    assert len(report.training.attempts) == 2
    assert report.training.attempts[1].first_step > 0
    assert len(service.teacher.received) == asked
    with service.store() as store:
        (claim,) = store.claims.list()
        assert [run.id for run in store.runs.list()] == ["run-1"]
    assert (claim.state, claim.owner) == (ClaimState.DONE, "run-1")
    assert order_book().get("run-1").state is RunState.COMPLETED


def test_a_run_of_another_machine_is_left_alone_until_that_is_said_to_be_dead(
    service: Any,
) -> None:
    plan = train_plan(service).model_copy(update={"training": service.plan().training})
    spec = plan.model_dump(mode="json")
    order_book().write(Order(run_id="run-1", flow="train", spec=spec, host="elsewhere"))
    with pytest.raises(RunBusy, match="host_is_dead"):
        resume_run()
    (adapter,) = resume_run(host_is_dead=True)
    assert adapter.run_id == "run-1"


def test_a_run_at_work_is_left_alone(service: Any) -> None:
    order = Order(run_id="run-1", flow="train", spec=train_plan(service).model_dump(mode="json"))
    with order_book().carry_out(order):
        with pytest.raises(RunBusy, match="run-1 is at work"):
            resume_run("run-1")
        with pytest.raises(RecordNotFound):
            resume_run()
