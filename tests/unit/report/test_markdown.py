"""Markdown that stays a table whatever a record says."""

from __future__ import annotations

import re

import pytest

from slm_core.records import DropReason
from slm_core.report import ReportInput
from slm_core.report.compose import compose
from slm_core.report.markdown import escape, to_markdown
from slm_core.testing.records import (
    make_adapter,
    make_arm,
    make_dataset,
    make_decision,
    make_evaluation,
    make_training_run,
)

NASTY = "a|b\nc | <img src=x> [x](http://evil) `|` **bold**"


def markdown_of(**changes: object) -> str:
    values: dict[str, object] = {
        "decision": make_decision(),
        "evaluation": make_evaluation(),
        "adapter": make_adapter(),
        "dataset": make_dataset(),
        "training": make_training_run(),
        "calls_captured": 312,
    }
    return to_markdown(compose(ReportInput.model_validate(values | changes), "A report"))


def tables(text: str) -> list[list[str]]:
    """Return the tables as lists of lines."""
    found: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


def cells(row: str) -> int:
    return len(re.findall(r"(?<!\\)\|", row)) - 1


def test_the_verdict_is_the_first_line() -> None:
    assert markdown_of().splitlines()[0] == "# ✓ SUCCESS: The adapter can replace the teacher"
    partial = markdown_of(decision=make_decision("PARTIAL"))
    assert partial.startswith("# ◐ PARTIAL: The adapter is not ready yet")


def test_scores_stand_with_their_intervals() -> None:
    text = markdown_of()
    line = next(line for line in text.splitlines() if line.startswith("| **Field F1**"))
    assert "97.5\u202f% (88.7–99.5)" in line
    assert cells(line) == 5


def test_differences_are_said_in_words() -> None:
    text = markdown_of()
    assert "Field F1: the adapter is 7.0 points better than the teacher" in text
    assert "the student is 88.5 points worse than the teacher" in text
    assert "not clearly better (3.6 points) than the teacher" in text


def test_tables_survive_bars_breaks_and_tags() -> None:
    evaluation = make_evaluation()
    arms = tuple(
        make_arm(arm.track, arm.arm, model=NASTY, failures={NASTY: 3}) for arm in evaluation.arms
    )
    decision = make_decision(next_actions=(NASTY,))
    gates = tuple(
        gate.model_copy(update={"gate": NASTY, "reason": NASTY}) for gate in decision.gates
    )
    text = markdown_of(
        evaluation=evaluation.model_copy(update={"arms": arms}),
        decision=decision.model_copy(update={"gates": gates}),
        dataset=make_dataset(drops={NASTY: 1}),
        adapter=make_adapter(base_model=NASTY, summary={NASTY: NASTY}),
    )
    for table in tables(text):
        assert {cells(row) for row in table} == {cells(table[0])}, table
    assert "<img" not in text.replace("\\<img", "")
    assert "[x](" not in text.replace("\\[x\\](", "")


def test_drops_are_counted_the_largest_first() -> None:
    text = markdown_of(dataset=make_dataset(drops={DropReason.FAILED: 2, DropReason.DUPLICATE: 5}))
    assert text.index("Left out: exact duplicate | 5") < text.index("Left out: call failed | 2")


def test_a_failure_that_an_arm_could_not_show_is_missing_not_zero() -> None:
    text = markdown_of(evaluation=make_evaluation(arms=("teacher", "adapter")))
    line = next(line for line in text.splitlines() if "structured: wrong value" in line)
    assert line == "| structured: wrong value | 8 | – | – | 3 |"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("plain words_with_underscores", "plain words_with_underscores"),
        ("a|b", "a\\|b"),
        ("a\nb", "a b"),
        ("<b>&", "\\<b\\>&amp;"),
        ("run `slm promote x` now", "run `slm promote x` now"),
        ("`a|b`", "`a\\|b`"),
        ("one ` only *", "one \\` only \\*"),
    ],
)
def test_escape(text: str, escaped: str) -> None:
    assert escape(text) == escaped
