"""The files of a comparison: all numbers for scripts, tables and sentences for people."""

from __future__ import annotations

import csv
from pathlib import Path

from slm_core.records import TRACKS, Approach, ApproachDifference, Comparison, NotCompared
from slm_core.report.approaches import comparison_table, write_comparison
from slm_core.report.plots import comparison_png
from slm_core.testing.scores import MADE_AT, make_arm, make_difference

COMPARISON = Comparison(
    test_set_id="gold-1",
    approaches=tuple(
        Approach(
            name=f"{arm}: a|b" if arm == "teacher" else f"{arm}: m",
            evaluation_id="evaluation-1",
            evaluated_at=MADE_AT,
            result=make_arm(track, arm),
        )
        for track in TRACKS
        for arm in ("teacher", "adapter")
    ),
    differences=(
        ApproachDifference(
            a="adapter: m",
            b="teacher: a|b",
            paired=make_difference("toolcall", "args_f1", "adapter", "teacher"),
        ),
    ),
    not_compared=(NotCompared(evaluation_id="evaluation-0", reason="asked other questions"),),
    created_at=MADE_AT,
)


def test_the_json_file_reads_back(tmp_path: Path) -> None:
    paths = write_comparison(COMPARISON, tmp_path)
    assert Comparison.model_validate_json(paths.json.read_bytes()) == COMPARISON


def test_the_csv_has_a_line_for_each_metric_and_view(tmp_path: Path) -> None:
    with write_comparison(COMPARISON, tmp_path).csv.open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * 2 * (6 + 7)
    (line,) = (
        line
        for line in lines
        if (line["approach"], line["view"], line["metric"]) == ("adapter: m", "strict", "args_f1")
    )
    result = COMPARISON.approaches[3].result.metrics["args_f1"]
    assert [float(line[name]) for name in ("value", "n", "low", "high")] == [
        result.value,
        result.n,
        result.low,
        result.high,
    ]


def test_the_text_shows_scores_differences_and_what_is_left_out(tmp_path: Path) -> None:
    text = write_comparison(COMPARISON, tmp_path).markdown.read_text()
    assert "## Scores: structured" in text
    assert "| teacher: a\\|b | 50 |" in text
    assert "Argument F1: adapter: m is" in text
    assert "n\u202f=\u202f50" in text
    assert "- evaluation-0: asked other questions" in text
    header, rule, *_ = (line for line in text.splitlines() if line.startswith("| "))
    assert header.count("|") == rule.count("|")


def test_the_table_has_a_row_for_each_approach() -> None:
    table = comparison_table(COMPARISON)
    assert [row["approach"] for row in table] == [one.name for one in COMPARISON.approaches]
    assert {row["n"] for row in table} == {"50"}


def test_the_plot_is_the_same_each_time_and_changes_with_the_scores() -> None:
    png = comparison_png(COMPARISON)
    assert png.startswith(b"\x89PNG")
    assert png == comparison_png(COMPARISON)
    fewer = COMPARISON.model_copy(update={"approaches": COMPARISON.approaches[:2]})
    assert comparison_png(fewer) != png
