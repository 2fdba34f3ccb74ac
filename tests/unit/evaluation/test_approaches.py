"""Approaches of several evaluations side by side: same questions only, the newest of each."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from slm_core.errors import EvaluationError
from slm_core.evaluation import EvaluationSpec
from slm_core.evaluation.approaches import compare_approaches
from slm_core.evaluation.summary import summarise
from slm_core.records import (
    ArmName,
    CaseResult,
    Evaluation,
    FailureClass,
    RowScore,
    sha256_hex,
)

BEGAN = datetime(2026, 3, 1, tzinfo=UTC)
SPEC = EvaluationSpec(resamples=200)
RIGHT, HALF, WRONG = "1" * 20, "10" * 10, "0" * 20


def rows(pattern: str, arm: ArmName) -> list[CaseResult]:
    """Return one row per character: 1 is exact, 0 is unreadable."""
    return [
        CaseResult(
            case_id=f"case-{number:03}",
            track="toolcall",
            arm=arm,
            output=mark,
            gold="g",
            strict=(score := _score(mark == "1")),
            lenient=score,
            cluster=f"talk-{number}",
            seconds=0.1,
            prompt_tokens=1,
            completion_tokens=1,
            cost_nanousd=None,
        )
        for number, mark in enumerate(pattern)
    ]


def _score(right: bool) -> RowScore:
    return RowScore(
        parsed=right,
        name_match=right,
        exact=right,
        true_positives=2 * right,
        predicted=2 * right,
        gold=2,
        failure=FailureClass.NONE if right else FailureClass.PROSE,
    )


def evaluation(
    folder: Path,
    name: str,
    arms: Mapping[ArmName, tuple[str, str]],
    *,
    day: int = 0,
    test_set: str = "gold-1",
) -> Evaluation:
    """Return an evaluation with its answers on disk; ``arms`` to model and pattern of rows."""
    results = {arm: rows(pattern, arm) for arm, (_, pattern) in arms.items()}
    summary = summarise({arm: model for arm, (model, _) in arms.items()}, results, SPEC)
    text = "".join(row.model_dump_json() + "\n" for found in results.values() for row in found)
    details = folder / f"{name}.jsonl"
    details.write_text(text)
    return Evaluation(
        id=name,
        test_set_id=test_set,
        adapter_id=None,
        arms=summary.arms,
        paired=summary.paired,
        details_path=str(details),
        details_sha256=sha256_hex(text),
        spec_digest="spec",
        seed=42,
        created_at=BEGAN + timedelta(days=day),
    )


def test_adapters_of_two_evaluations_are_paired_on_the_same_rows(tmp_path: Path) -> None:
    old = evaluation(tmp_path, "old", {"teacher": ("t", RIGHT), "adapter": ("a1", HALF)})
    new = evaluation(tmp_path, "new", {"adapter": ("a2", RIGHT)}, day=1)
    found = compare_approaches([old, new], resamples=200)
    assert [one.name for one in found.approaches] == ["teacher: t", "adapter: a1", "adapter: a2"]
    pairs = {
        (one.a, one.b): one.paired for one in found.differences if "exact" in one.paired.metric
    }
    assert pairs.keys() == {
        ("adapter: a1", "teacher: t"),
        ("adapter: a2", "teacher: t"),
        ("adapter: a2", "adapter: a1"),
    }
    gain = pairs[("adapter: a2", "adapter: a1")]
    assert gain.difference.value == pytest.approx(0.5)
    assert gain.difference.low > 0
    assert (gain.a_only, gain.b_only, gain.difference.n) == (10, 0, 20)
    assert pairs[("adapter: a2", "teacher: t")].difference.value == 0


def test_each_approach_is_taken_from_its_newest_evaluation(tmp_path: Path) -> None:
    old = evaluation(tmp_path, "old", {"teacher": ("t", WRONG), "student": ("s", WRONG)})
    new = evaluation(tmp_path, "new", {"teacher": ("t", RIGHT)}, day=1)
    found = compare_approaches([new, old], resamples=200)
    taken = {one.name: one.evaluation_id for one in found.approaches}
    assert taken == {"teacher: t": "new", "student: s": "old"}


def test_other_questions_are_left_out_and_said_so(tmp_path: Path) -> None:
    old = evaluation(tmp_path, "old", {"teacher": ("t", RIGHT)}, test_set="gold-0")
    new = evaluation(tmp_path, "new", {"teacher": ("t", HALF)}, day=1)
    found = compare_approaches([old, new], resamples=200)
    assert found.test_set_id == "gold-1"
    assert [one.evaluation_id for one in found.approaches] == ["new"]
    assert [(one.evaluation_id, one.reason) for one in found.not_compared] == [
        ("old", "asked other questions: gold-0")
    ]
    asked = compare_approaches([old, new], "gold-0", resamples=200)
    assert [one.evaluation_id for one in asked.approaches] == ["old"]


def test_lost_or_altered_answers_leave_scores_without_differences(tmp_path: Path) -> None:
    gone = evaluation(tmp_path, "gone", {"teacher": ("t", RIGHT)})
    altered = evaluation(tmp_path, "altered", {"student": ("s", WRONG)})
    whole = evaluation(tmp_path, "whole", {"adapter": ("a", RIGHT)}, day=1)
    Path(gone.details_path).unlink()
    Path(altered.details_path).write_text("{}\n")
    found = compare_approaches([gone, altered, whole], resamples=200)
    assert len(found.approaches) == 3
    assert found.differences == ()
    reasons = {one.evaluation_id: one.reason for one in found.not_compared}
    assert "cannot be read" in reasons["gone"]
    assert "altered" in reasons["altered"]


def test_nothing_to_compare_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="no evaluation"):
        compare_approaches([])
    with pytest.raises(EvaluationError, match="None of the 1 evaluations is of the test set x"):
        compare_approaches([evaluation(tmp_path, "e", {"teacher": ("t", RIGHT)})], "x")
