"""Comparing stored evaluations: files, artifacts, and what an empty store says."""

from __future__ import annotations

from typing import Any

import pytest
from prefect.artifacts import Artifact

from flows.compare_approaches import compare_approaches
from flows.evaluate_model import evaluate_model
from slm_core.errors import RecordNotFound
from slm_core.presets import EVAL_BASELINE
from slm_core.records import Comparison

pytestmark = pytest.mark.integration


def test_an_empty_store_is_no_failure(service: Any) -> None:
    state = compare_approaches(return_state=True)
    assert state.is_completed()
    assert (state.name, "eval/cep" in (state.message or "")) == ("Skipped", True)


def test_arms_of_two_evaluations_stand_side_by_side(service: Any) -> None:
    bare = service.eval_plan(cep=None, arms=EVAL_BASELINE.arms, decision=EVAL_BASELINE.decision)
    first = evaluate_model(preset="baseline", run_id="eval-1", overrides=bare)
    second = evaluate_model(run_id="eval-2", overrides=service.eval_plan())
    comparison = compare_approaches(run_id="compare-1")
    assert isinstance(comparison, Comparison)
    arms = [one.result.arm for one in comparison.approaches if one.result.track == "toolcall"]
    assert arms == ["teacher", "student", "student_cep"]
    assert {one.evaluation_id for one in comparison.approaches} == {second.evaluation.id}
    assert comparison.differences
    folder = service.folder / "runs" / "compare-1" / "comparison"
    assert sorted(path.name for path in folder.iterdir()) == [
        "comparison.csv",
        "comparison.json",
        "comparison.md",
    ]
    shown = Artifact.get("comparison")
    assert shown is not None
    assert shown.data == (folder / "comparison.md").read_text()
    plot = Artifact.get("approaches-plot")
    assert plot is not None
    assert str(plot.data).startswith("data:image/png;base64,")
    chosen = compare_approaches(evaluation_ids=(first.evaluation.id,), run_id="compare-2")
    assert {one.evaluation_id for one in chosen.approaches} == {first.evaluation.id}


def test_an_unknown_evaluation_is_an_error_that_names_it(service: Any) -> None:
    with pytest.raises(RecordNotFound, match="evaluation-of-nobody"):
        compare_approaches(evaluation_ids=("evaluation-of-nobody",))
