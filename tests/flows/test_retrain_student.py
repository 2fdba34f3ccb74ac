"""A claim becomes an adapter and a verdict; what stops a run leaves the claim where it helps."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from prefect.states import State

from flows.retrain_student import _after_promotion, _with_own_student, retrain_student
from slm_core.dataset import read_split
from slm_core.errors import GpuFault, ModelError, StoreUnavailable, TracingUnavailable
from slm_core.health.host import HostPaths
from slm_core.health.ledger import Ledger, LedgerEntry
from slm_core.presets import NANO
from slm_core.records import (
    SPLITS,
    TRACKS,
    ClaimState,
    DropReason,
    NextAction,
    Route,
    RunState,
    Stage,
)
from slm_core.report import ReportInput
from slm_core.report.document import Document
from slm_core.testing.langfuse_receiver import LangfuseReceiver, ReceivedSpan
from slm_core.testing.records import make_decision
from slm_core.training.events import read_events
from tasks import _wiring
from tasks.capture import take_claim
from tasks.training import train_adapter

pytestmark = pytest.mark.integration

DEADLINE_SECONDS = 60.0


class Finished(NamedTuple):
    """One retraining that ran to its end, and what it left."""

    service: Any
    claim_id: str
    result: ReportInput
    langfuse: LangfuseReceiver


@pytest.fixture(scope="module")
def finished(make_service: Callable[[], Any]) -> Iterator[Finished]:
    service = make_service()
    with LangfuseReceiver() as langfuse:
        service.trace_to(langfuse, SLM_REQUIRE_LANGFUSE="1")
        claim_id = service.claimed(leaked=1)
        result = retrain_student(claim_id=claim_id, run_id="run-1", overrides=service.plan())
        assert isinstance(result, ReportInput)
        yield Finished(service, claim_id, result, langfuse)


@pytest.fixture
def again(finished: Finished) -> Iterator[Finished]:
    """The finished retraining, its settings those of this process."""
    finished.service.trace_to(finished.langfuse, SLM_REQUIRE_LANGFUSE="1")
    yield finished
    _wiring._settings.clear()


def start(service: Any, run_id: str = "run-1", **arguments: Any) -> State[Any]:
    arguments = {"overrides": service.plan()} | arguments
    return retrain_student(run_id=run_id, **arguments, return_state=True)


def error_of(state: State[Any]) -> BaseException:
    error = state.result(raise_on_failure=False)
    assert isinstance(error, BaseException), state
    return error


def state_of(service: Any, claim_id: str) -> tuple[ClaimState, str | None]:
    with service.store() as store:
        claim = store.claims.get(claim_id)
    return claim.state, claim.owner


def test_a_claim_becomes_a_verdict_with_everything_that_led_to_it(again: Finished) -> None:
    service, claim_id, result, _ = again
    assert result.decision.outcome in ("FAILURE", "PARTIAL")  # the student is nobody
    with service.store() as store:
        (run,) = store.runs.list()
        assert (run.state, run.adapter_id) == (RunState.COMPLETED, result.adapter.id)
        assert [attempt.fault for attempt in run.attempts] == [None]
        assert store.datasets.get(result.dataset.id).id == run.dataset_id
        assert store.adapters.get(result.adapter.id).dataset_id == run.dataset_id
        evaluation = store.evaluations.get(result.evaluation.id)
        assert evaluation.adapter_id == result.adapter.id
        assert store.decisions.get(result.decision.id).evaluation_id == evaluation.id
        assert store.routes.list() == ()
        assert store.verify() == []
    assert {(arm.track, arm.arm) for arm in evaluation.arms} == {
        (track, arm) for track in TRACKS for arm in ("teacher", "student", "student_cep", "adapter")
    }
    right = evaluation.arm("structured", "teacher")
    assert right is not None
    assert right.metrics["exact_match_rate"].value == 1.0
    assert state_of(service, claim_id) == (ClaimState.DONE, "run-1")


def test_the_report_lies_in_the_run_folder(again: Finished) -> None:
    folder = again.service.folder / "runs" / "run-1" / "report"
    document = Document.model_validate_json((folder / "report.json").read_bytes())
    assert document.outcome == again.result.decision.outcome
    assert again.result.decision.outcome in (folder / "report.md").read_text()
    assert again.result.adapter.id in (folder / "report.html").read_text()
    assert set(again.result.timings) == {
        "test set", "dataset", "baseline", "training", "evaluation"
    }  # fmt: skip


def test_a_captured_test_question_never_trains_and_is_counted(again: Finished) -> None:
    dataset = again.result.dataset
    assert dataset is not None
    assert dataset.drops == {DropReason.FROZEN_TEST: 1}
    assert sum(dataset.rows.values()) == 19
    leaked = again.service.cases()[0].prompt[-1].content
    rows = [row for split in SPLITS for row in read_split(Path(dataset.path), split)]
    assert leaked not in {row.prompt[-1].content for row in rows}


def test_a_done_claim_is_not_trained_on_twice(again: Finished) -> None:
    state = start(again.service, "run-2", claim_id=again.claim_id)
    assert (state.name, state.is_completed()) == ("Skipped", True)
    assert again.claim_id in str(state.message)
    assert not (again.service.folder / "runs" / "run-2").exists()


def test_a_run_that_died_after_closing_its_claim_is_done(again: Finished) -> None:
    book = _wiring.order_book()
    book.note("run-1", state=RunState.RUNNING)
    state = start(again.service, "run-1", claim_id=again.claim_id)
    assert state.is_completed()
    assert book.get("run-1").state is RunState.COMPLETED


def test_one_retraining_is_one_trace_of_nested_spans(again: Finished) -> None:
    spans = again.langfuse.spans
    by_id = {span.id: span for span in spans}

    def path(span: ReceivedSpan) -> str:
        parent = f"{path(by_id[span.parent_id])}/" if span.parent_id else ""
        return parent + span.name

    assert {span.trace_id for span in spans} == {again.result.trace_id}
    assert len(by_id) == len(spans)
    assert [path(span) for span in sorted(spans, key=lambda span: span.end_ns)] == [
        "retrain/make the test set",
        "retrain/build the dataset",
        "retrain/evaluate the baseline/teacher",
        "retrain/evaluate the baseline/student",
        "retrain/evaluate the baseline/student_cep",
        "retrain/evaluate the baseline",
        "retrain/train the adapter",
        "retrain/evaluate all arms/teacher",
        "retrain/evaluate all arms/student",
        "retrain/evaluate all arms/student_cep",
        "retrain/evaluate all arms/adapter",
        "retrain/evaluate all arms",
        "retrain/decide",
        "retrain/publish the report",
        "retrain",
    ]
    assert not any(span.failed for span in spans)
    with again.service.store() as store:
        assert store.spans.counts()["pending"] == 0


def test_the_trace_holds_the_dataset_and_a_score_for_every_metric(again: Finished) -> None:
    names = {span.name: span for span in again.langfuse.spans}
    output = names["build the dataset"].attributes["langfuse.observation.output"]
    assert again.result.dataset.path in output
    metric = again.result.evaluation.arm("toolcall", "adapter").metrics["args_f1"]
    (score,) = [
        score
        for score in again.langfuse.scores.values()
        if score["observationId"] == names["adapter"].id
        and score["name"] == "toolcall/adapter/args_f1"
    ]
    assert score["value"] == metric.value


def test_without_any_claim_a_run_says_what_is_missing(service: Any) -> None:
    service.spool([])
    state = start(service, overrides=None)
    assert (state.name, state.is_completed()) == ("Skipped", True)
    assert "0 usable calls wait, 20 more make a claim of 20" in str(state.message)


def test_a_required_langfuse_that_is_down_stops_a_run_before_it_takes_its_claim(
    service: Any,
) -> None:
    with LangfuseReceiver() as langfuse:
        service.trace_to(langfuse, SLM_REQUIRE_LANGFUSE="1", LANGFUSE_TIMEOUT="1")
    claim_id = service.claimed()
    assert isinstance(error_of(start(service, claim_id=claim_id)), TracingUnavailable)
    assert state_of(service, claim_id) == (ClaimState.NEW, None)
    assert not (service.folder / "runs").exists()


@pytest.mark.parametrize("fault", ["missing", "altered"])
def test_a_bad_base_model_gives_the_claim_back_and_the_trace_says_why(
    service: Any, tmp_path: Path, fault: str
) -> None:
    base = tmp_path / "base"
    if fault == "altered":
        shutil.copytree(service.student, base)
        (base / "SHA256SUMS").write_text(f"{'0' * 64}  model.safetensors\n")
    plan = service.plan(base_model=str(base))
    plan = plan.model_copy(update={"eval": service.eval_plan(student_model=str(base))})
    claim_id = service.claimed()
    with LangfuseReceiver() as langfuse:
        service.trace_to(langfuse)
        state = start(service, claim_id=claim_id, overrides=plan)
    error = error_of(state)
    assert isinstance(error, ModelError)
    assert str(base) in str(error)
    assert state.is_failed()
    assert state_of(service, claim_id) == (ClaimState.RELEASED, None)
    (root,) = [span for span in langfuse.spans if span.parent_id is None]
    assert root.failed


def test_a_sick_gpu_leaves_the_claim_with_the_run_that_can_be_resumed(service: Any) -> None:
    boot_id = HostPaths().boot_id()
    fault = LedgerEntry(wall_time=1.0, boot_id=boot_id, job="run-0", action=NextAction.REBOOT)
    Ledger(service.settings.gpu_ledger).record(fault)
    claim_id = service.claimed()
    error = error_of(start(service, claim_id=claim_id, overrides=service.plan(device="cuda")))
    assert isinstance(error, GpuFault)
    assert _wiring.order_book().get("run-1").state is RunState.INTERRUPTED
    assert state_of(service, claim_id) == (ClaimState.RUNNING, "run-1")


def test_the_nightly_run_takes_a_released_claim_and_loses_no_row_of_it(
    service: Any, tmp_path: Path
) -> None:
    claim_id = service.claimed()
    bad = service.plan(base_model=str(tmp_path / "missing"))
    # The students are evaluated before the training fails.
    assert isinstance(error_of(start(service, "failed", overrides=bad)), ModelError)
    with service.store() as store:
        (first,) = store.datasets.list()

    report = start(service, "nightly").result()

    assert report.dataset.id == first.id
    assert sum(report.dataset.rows.values()) == 20
    assert state_of(service, claim_id) == (ClaimState.DONE, "nightly")


@contextmanager
def at_first_new_step(events: Path, act: Callable[[], None]) -> Iterator[None]:
    """Act once when training has logged a step more than now."""
    before = len(read_events(events))

    def watch() -> None:
        give_up = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < give_up:
            if len(read_events(events)) > before:
                act()
                return
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield
    watcher.join()


def kill_worker() -> None:
    for process in psutil.Process().children():
        # A child that has ended and was not waited for yet has no command line.
        with suppress(psutil.ZombieProcess, psutil.NoSuchProcess):
            if "slm_core.training.worker" in process.cmdline():
                process.kill()


def test_an_interrupted_run_goes_on_and_outlives_the_death_of_its_worker(
    service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_adapter, "retry_delay_seconds", [0, 0])
    claim_id = service.claimed()
    plan = service.plan(epochs=8)
    events = service.folder / "runs" / "run-1" / "training" / "events.jsonl"

    with (
        at_first_new_step(events, lambda: os.kill(os.getpid(), signal.SIGINT)),
        pytest.raises(KeyboardInterrupt),
    ):
        start(service, claim_id=claim_id, overrides=plan)
    with service.store() as store:
        (interrupted,) = store.runs.list()
    assert interrupted.state is RunState.INTERRUPTED
    assert state_of(service, claim_id) == (ClaimState.RUNNING, "run-1")
    asked = len(service.teacher.received)

    with at_first_new_step(events, kill_worker):
        report = start(service, claim_id=claim_id, overrides=plan).result()

    assert report.training.state is RunState.COMPLETED
    faults = [a.fault.kind if a.fault else None for a in report.training.attempts]
    assert faults == ["interrupted", "worker_killed", None]
    starts = [attempt.first_step for attempt in report.training.attempts]
    assert starts == sorted(starts)
    assert starts[1] > 0
    assert report.dataset.id == interrupted.dataset_id
    assert len(service.teacher.received) == asked
    assert state_of(service, claim_id) == (ClaimState.DONE, "run-1")


@pytest.mark.parametrize("fault", ["read-only", "gone"])
def test_a_store_that_cannot_be_used_is_named_with_what_to_do(
    service: Any, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(take_claim, "retry_delay_seconds", [0, 0])
    claim_id = service.claimed()
    file = service.folder / "slm.db"
    if fault == "read-only":
        service.configure(SLM_DATABASE_URL=f"sqlite:///{file}?mode=ro")
    else:
        (service.folder / "file").touch()
        service.configure(SLM_DATABASE_URL=f"sqlite:///{service.folder}/file/slm.db")
    state = start(service, claim_id=claim_id)
    error = error_of(state)
    assert isinstance(error, StoreUnavailable)
    advice = {"read-only": "Let this user write to it", "gone": "Name a folder"}[fault]
    assert advice in str(error)
    assert "\n" not in str(error)
    service.configure()
    assert state_of(service, claim_id) == (ClaimState.NEW, None)


def test_after_a_promotion_the_report_says_who_answers_now() -> None:
    decision = make_decision(outcome="SUCCESS")
    route = Route(
        agent_name="intake",
        track="structured",
        adapter_id="adapter-1",
        stage=Stage.LIVE,
        version=1,
    )
    (action,) = _after_promotion(decision, [route]).next_actions
    assert "intake/structured" in action
    assert "roll-back" in action
    waiting = route.model_copy(update={"stage": Stage.CANDIDATE})
    assert _after_promotion(decision, [waiting]) == decision


def test_the_student_that_the_settings_name_replaces_the_presets(service: Any) -> None:
    service.configure()
    assert _with_own_student(NANO) == NANO
    service.configure(SLM_STUDENT_MODEL="/models/other")
    plan = _with_own_student(NANO)
    assert (plan.training.base_model, plan.eval.student_model) == ("/models/other",) * 2
