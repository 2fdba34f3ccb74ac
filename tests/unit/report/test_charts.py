"""Charts: marks where the numbers are, nothing where there is none."""

from __future__ import annotations

import re

import pytest

from slm_core.records import ARMS
from slm_core.report import ReportInput, charts
from slm_core.report.compose import compose
from slm_core.report.document import LossSample, TrackReport
from slm_core.testing.records import make_arm, make_decision, make_evaluation


def track_report(**changes: object) -> TrackReport:
    evaluation = make_evaluation().model_copy(update=changes)
    report = compose(ReportInput(decision=make_decision(), evaluation=evaluation), "")
    return report.tracks["structured"]


def test_each_score_is_drawn_on_its_interval() -> None:
    report = track_report()
    svg = charts.scores("structured", report, "adapter")
    assert svg.count('class="mark') == 6 * 4
    score = (report.arms["adapter"] or {})["field_f1"]
    place = r'Adapter, Field F1: .*?x1="([0-9.]+)%" x2="([0-9.]+)%".*?x="([0-9.]+)%"'
    drawn = re.search(place, svg)
    assert drawn is not None
    shares = [float(share) / 100 for share in drawn.groups()]
    assert shares == pytest.approx([score.low, score.high, score.value], abs=1e-4)


def test_an_arm_that_did_not_run_is_not_drawn() -> None:
    report = track_report(arms=tuple(make_arm("structured", arm) for arm in ("teacher", "student")))
    svg = charts.scores("structured", report, "adapter")
    assert svg.count('class="mark') == 6 * 2
    assert ">–<" in svg


def test_differences_stand_on_their_side_of_zero() -> None:
    pairs = track_report().paired["student_vs_teacher"]
    svg = charts.differences({"field_f1": pairs["field_f1"]})
    assert 'class="bad"' in svg
    at = re.search(r'<circle cx="([0-9.]+)%"', svg)
    assert at is not None
    assert float(at[1]) < 50


def test_failures_show_no_number_for_an_arm_that_did_not_run() -> None:
    report = track_report(arms=tuple(make_arm("structured", arm) for arm in ("student", "adapter")))
    table = charts.failures(report, ARMS)
    assert table.count("missing") == 2 * (4 + 1)  # teacher and CEP, four classes and the sum
    assert "<b>31</b>" in table


def test_rare_failure_classes_are_summed() -> None:
    many = {f"class {number:02d}": 30 - number for number in range(20)}
    table = charts.failures(
        track_report(arms=(make_arm("structured", "adapter", failures=many),)), ("adapter",)
    )
    assert "8 other classes" in table
    assert f"<b>{sum(many.values())}</b>" in table


def test_a_price_that_is_not_known_has_no_bar() -> None:
    arms = (make_arm("structured", "adapter", cost_per_1000_usd=None),)
    assert "<rect" not in charts.costs(track_report(arms=arms))
    assert "–" in charts.costs(track_report(arms=arms))


def test_free_and_instant_arms_divide_by_nothing() -> None:
    arms = (
        make_arm("structured", "adapter", cost_per_1000_usd=0.0, seconds_p50=0.0, seconds_p95=0.0),
    )
    report = track_report(arms=arms)
    assert "$0.00" in charts.costs(report)
    assert "0.0\u202fms" in charts.latencies(report)


def test_a_long_curve_is_averaged_and_says_so() -> None:
    points = [LossSample(step=step, loss=1.0, val_loss=None) for step in range(1, 10_001)]
    svg = charts.losses(points)
    corners = re.search(r'class="train" points="([^"]*)"', svg)
    assert corners is not None
    assert len(corners[1].split()) <= charts.MOST_POINTS
    assert "mean of 34 steps" in svg
    assert "no validation loss" in svg


@pytest.mark.parametrize(
    "points",
    [
        [LossSample(step=1, loss=0.0, val_loss=None)],
        [LossSample(step=1, loss=None, val_loss=None)],
        [LossSample(step=3, loss=2.0, val_loss=1.0)],
    ],
)
def test_short_and_empty_curves_are_drawn(points: list[LossSample]) -> None:
    assert "nan" not in charts.losses(points)
