"""Evaluating alone: which arms, who is judged, and what is not asked twice."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prefect.artifacts import Artifact

from flows.evaluate_model import evaluate_model
from slm_core.dataset import build
from slm_core.dataset.berkeley import Unusable
from slm_core.errors import DatasetError, LeakFound, RecordNotFound, TracingUnavailable
from slm_core.presets import EVAL_BASELINE
from slm_core.presets import TestSetSpec as CasesSpec
from slm_core.prompting.prefix import get_prefix
from slm_core.testing.langfuse_receiver import LangfuseReceiver
from slm_core.testing.tiny_adapter import build_tiny_adapter
from slm_core.testing.workload import answered, generate
from slm_core.tracing import push_pending

pytestmark = pytest.mark.integration

CAPTURED_AT = datetime(2026, 3, 1, tzinfo=UTC)


def baseline(service: Any) -> Any:
    return service.eval_plan(cep=None, arms=EVAL_BASELINE.arms, decision=EVAL_BASELINE.decision)


def arms_of(report: Any) -> list[str]:
    return [arm.arm for arm in report.evaluation.arms if arm.track == "toolcall"]


def test_without_an_adapter_the_prefixed_student_is_judged(service: Any) -> None:
    report = evaluate_model(run_id="eval-1", overrides=service.eval_plan())
    assert arms_of(report) == ["teacher", "student", "student_cep"]
    assert report.evaluation.difference("toolcall", "args_f1", "student_cep", "teacher")
    assert report.adapter is None
    assert report.decision.adapter_id is None
    assert any("student_cep" in gate.reason for gate in report.decision.gates)
    with service.store() as store:
        assert store.evaluations.list() == (report.evaluation,)
        assert [decision.id for decision in store.decisions.list()] == [report.decision.id]
        assert store.routes.list() == ()


def test_with_an_adapter_it_is_the_candidate(service: Any, tmp_path: Path) -> None:
    adapter = build_tiny_adapter(tmp_path / "adapter", service.student, get_prefix("compact"))
    with service.store() as store:
        store.adapters.save(adapter)
    report = evaluate_model(run_id="eval-1", overrides=service.eval_plan())
    assert arms_of(report) == ["teacher", "student", "student_cep", "adapter"]
    assert report.decision.adapter_id == adapter.id
    page = service.folder / "runs" / "eval-1" / "report" / "report.html"
    assert adapter.id in page.read_text()


def test_an_adapter_is_not_scored_on_what_it_learned(
    service: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls = [
        answered(case, f"call-{n}", model="gpt-4o", created_at=CAPTURED_AT)
        for n, case in enumerate([*service.cases(), *generate(0, 20, "traffic", "toolcall")])
    ]
    dataset = build(calls, service.plan().dataset, tmp_path / "datasets")
    adapter = build_tiny_adapter(tmp_path / "adapter", service.student, get_prefix("compact"))
    with service.store() as store:
        store.datasets.save(dataset)
        store.adapters.save(adapter.model_copy(update={"dataset_id": dataset.id}))
    asked = len(service.teacher.received)

    with pytest.raises(LeakFound, match=r"held-out row.* also occur in the training data"):
        evaluate_model(run_id="eval-1", overrides=service.eval_plan())
    assert len(service.teacher.received) == asked
    # The other arms learned nothing.
    assert arms_of(evaluate_model(run_id="eval-2", overrides=baseline(service)))

    shutil.rmtree(dataset.path)
    report = evaluate_model(run_id="eval-3", overrides=service.eval_plan())
    assert "adapter" in arms_of(report)
    assert f"not compared with training rows adapter={adapter.id}" in caplog.text


def test_an_adapter_is_scored_on_what_it_has_not_seen(
    service: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls = [
        answered(case, f"call-{n}", model="gpt-4o", created_at=CAPTURED_AT)
        for n, case in enumerate(generate(0, 20, "traffic", "toolcall"))
    ]
    dataset = build(calls, service.plan().dataset, tmp_path / "datasets")
    adapter = build_tiny_adapter(tmp_path / "adapter", service.student, get_prefix("compact"))
    with service.store() as store:
        store.datasets.save(dataset)
        store.adapters.save(adapter.model_copy(update={"dataset_id": dataset.id}))
    assert "adapter" in arms_of(evaluate_model(run_id="eval-1", overrides=service.eval_plan()))
    assert "not compared" not in caplog.text


def test_an_unknown_adapter_is_an_error_that_names_it(service: Any) -> None:
    with pytest.raises(RecordNotFound, match="adapter-of-nobody"):
        evaluate_model(adapter_id="adapter-of-nobody", overrides=service.eval_plan())


def test_the_baseline_judges_the_bare_student(service: Any) -> None:
    report = evaluate_model(preset="baseline", run_id="eval-1", overrides=baseline(service))
    assert arms_of(report) == ["teacher", "student"]
    assert report.evaluation.difference("structured", "field_f1", "student", "teacher")


def test_the_same_run_asks_nobody_again_and_another_run_asks_anew(service: Any) -> None:
    before = len(service.teacher.received)
    first = evaluate_model(run_id="eval-1", overrides=baseline(service))
    asked = len(service.teacher.received)
    assert asked - before == len(service.cases())
    again = evaluate_model(run_id="eval-1", overrides=baseline(service))
    assert len(service.teacher.received) == asked
    assert again.evaluation == first.evaluation

    # Same answers, other latencies: the same evaluation, measured again.
    other = evaluate_model(run_id="eval-2", overrides=baseline(service))
    assert len(service.teacher.received) == 2 * asked - before
    assert other.evaluation.id == first.evaluation.id
    assert "eval-2" in other.evaluation.details_path


def test_spans_wait_in_the_store_until_somebody_sends_them(service: Any) -> None:
    report = evaluate_model(run_id="eval-1", overrides=baseline(service))
    with service.store() as store, LangfuseReceiver() as langfuse:
        waiting = store.spans.counts()["pending"]
        assert waiting == 5  # the run, the evaluation, its two arms, the decision
        assert push_pending(store.spans, langfuse.config()).ok
        assert len(langfuse.spans) == waiting
        assert {span.trace_id for span in langfuse.spans} == {report.trace_id}
        assert store.spans.counts() == {"pending": 0, "sent": waiting}


def test_a_required_langfuse_without_keys_stops_the_run_before_anything(service: Any) -> None:
    service.configure(SLM_REQUIRE_LANGFUSE="1")
    asked = len(service.teacher.received)
    with pytest.raises(TracingUnavailable, match="LANGFUSE_PUBLIC_KEY is not set"):
        evaluate_model(run_id="eval-1", overrides=service.eval_plan())
    assert len(service.teacher.received) == asked
    assert not (service.folder / "runs").exists()


def test_berkeley_data_is_asked_and_what_is_left_out_is_shown(service: Any) -> None:
    plan = service.eval_plan(test_set=CasesSpec(berkeley="sample"))
    report = evaluate_model(preset="berkeley", run_id="eval-1", overrides=plan)
    sizes = {arm.track: max(m.n for m in arm.metrics.values()) for arm in report.evaluation.arms}
    assert sizes == {"structured": 10, "toolcall": 12}
    assert report.drops == {Unusable.SEVERAL_CALLS.value: 2}
    table = Artifact.get("berkeley-rows")
    assert table is not None
    assert "not the leaderboard" in (table.description or "")
    assert "sample_parallel_0" in str(table.data)
    page = service.folder / "runs" / "eval-1" / "report" / "report.md"
    assert Unusable.SEVERAL_CALLS.value in page.read_text()


def test_a_folder_without_berkeley_data_is_refused(service: Any, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"holds no BFCL_\*\.json"):
        evaluate_model(berkeley_folder=str(tmp_path), overrides=service.eval_plan())
