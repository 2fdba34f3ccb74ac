"""Numbers and sentences: right signs, right direction, nothing claimed without evidence."""

from __future__ import annotations

import pytest

from slm_core.records import Metric
from slm_core.report import ReportInput
from slm_core.report.compose import compose
from slm_core.report.document import Difference
from slm_core.report.words import (
    compared,
    evidence,
    fact,
    in_order,
    meaning,
    percent,
    seconds,
    signed,
    usd,
    verdict,
)
from slm_core.testing.records import make_decision, make_evaluation


def difference(value: float, low: float, high: float, p: float | None = None) -> Difference:
    metric = Metric(value=value, n=50, low=low, high=high)
    return Difference(difference=metric, mcnemar_p=p, a_only=7, b_only=2)


@pytest.mark.parametrize(
    ("metric", "pair", "better", "phrase"),
    [
        ("field_f1", difference(0.07, 0.01, 0.12), True, "7.0 points better"),
        ("field_f1", difference(-0.07, -0.12, -0.01), False, "7.0 points worse"),
        ("field_f1", difference(0.03, -0.02, 0.08), None, "not clearly better (3.0 points)"),
        ("field_f1", difference(-0.03, -0.08, 0.02), None, "not clearly worse (3.0 points)"),
        ("field_f1", difference(0.0, 0.0, 0.0), None, "neither better nor worse"),
        ("over_call_rate", difference(0.07, 0.01, 0.12), False, "7.0 points worse"),
        ("over_call_rate", difference(-0.07, -0.12, -0.01), True, "7.0 points better"),
        ("over_call_rate", difference(-0.03, -0.08, 0.02), None, "not clearly better (3.0 points)"),
    ],
)
def test_a_difference_is_judged_by_its_interval(
    metric: str, pair: Difference, better: bool | None, phrase: str
) -> None:
    assert compared(metric, pair) == (better, phrase)


def test_evidence_names_rows_and_p() -> None:
    text = evidence(difference(0.1, 0.02, 0.2, p=0.18)).replace("\u202f", " ")
    assert text == "(95 % interval +2.0 to +20.0; n = 50; 7 against 2 rows, McNemar p = 0.180)"
    assert "McNemar p < 0.001" in evidence(difference(0.1, 0.02, 0.2, p=1e-30))
    assert "McNemar" not in evidence(difference(0.1, 0.02, 0.2))


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0005, "0.5 ms"), (0.061, "61 ms"), (1.6, "1.60 s"), (200.2, "3 min 20 s")],
)
def test_seconds(value: float | None, text: str) -> None:
    assert seconds(value).replace("\u202f", " ") == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "$0.00"),
        (4.25, "$4.25"),
        (1234.5, "$1,234.50"),
        (0.05, "$0.05"),
        (0.0031, "$0.0031"),
        (0.00000123, "$1.2e-06"),
    ],
)
def test_usd(value: float | None, text: str) -> None:
    assert usd(value) == text


def test_small_numbers() -> None:
    assert signed(0.00001) == signed(-0.00001) == "0.0"
    assert signed(-0.07) == "\N{MINUS SIGN}7.0"
    assert percent(None) == "–"
    assert [fact(x) for x in (24310, 6100.0, 0.123456, True, "x")] == [
        "24,310",
        "6,100",
        "0.1235",
        "True",
        "x",
    ]


def test_unknown_metrics_come_last() -> None:
    assert in_order(["my_metric", "field_f1", "json_valid_rate"]) == [
        "json_valid_rate",
        "field_f1",
        "my_metric",
    ]


def test_without_an_adapter_the_sentences_speak_of_the_student() -> None:
    report = ReportInput(
        decision=make_decision("FAILURE", adapter_id=None),
        evaluation=make_evaluation(arms=("teacher", "student")),
    )
    document = compose(report, "")
    assert verdict(document) == "The student needs fine-tuning"
    assert all("the student reaches" in sentence for sentence in meaning(document))
    assert "88.5 points worse than the teacher" in meaning(document)[0]
