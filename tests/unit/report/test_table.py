"""The comparison for a terminal."""

from __future__ import annotations

from io import StringIO

from rich.console import Console
from rich.table import Table

from slm_core.report import arms_table
from slm_core.testing.records import make_arm, make_evaluation


def test_every_arm_has_a_row_as_wide_as_the_heading() -> None:
    table = arms_table(make_evaluation())
    assert len(table.rows) == 8
    assert {len(row) for row in table.rows} == {len(table.columns)}
    assert table.rows[3][:3] == ("structured", "Adapter", "50")
    assert table.rows[3][table.columns.index("F1")] == "97.5\u202f%"


def test_rich_shows_it() -> None:
    columns, rows = arms_table(make_evaluation())
    shown = Table(*columns)
    for row in rows:
        shown.add_row(*row)
    console = Console(width=200, record=True, file=StringIO())
    console.print(shown)
    text = console.export_text()
    for row in rows:
        assert any(all(cell in line for cell in row) for line in text.splitlines()), row


def test_what_is_missing_is_shown_as_missing() -> None:
    arm = make_arm("toolcall", "adapter", metrics={}, cost_per_1000_usd=None)
    evaluation = make_evaluation().model_copy(update={"arms": (arm,)})
    (row,) = arms_table(evaluation).rows
    assert row == ("toolcall", "Adapter", *["–"] * 7, "61\u202fms", "–")
