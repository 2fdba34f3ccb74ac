"""The comparison of the arms as rows of text, for a terminal."""

from __future__ import annotations

from typing import NamedTuple

from slm_core.records import ARMS, TRACKS, ArmResult, Evaluation, Track
from slm_core.report.words import ARM_NAMES, MISSING, interval, percent, seconds, usd

_COLUMNS: dict[str, dict[Track, str]] = {
    "valid": {"structured": "json_valid_rate", "toolcall": "valid_call_rate"},
    "exact": {"structured": "exact_match_rate", "toolcall": "args_exact_rate"},
    "precision": {"structured": "field_precision", "toolcall": "args_precision"},
    "recall": {"structured": "field_recall", "toolcall": "args_recall"},
    "F1": {"structured": "field_f1", "toolcall": "args_f1"},
}


class ArmsTable(NamedTuple):
    """A heading and rows of as many cells: ``Table(*columns)``, then ``add_row(*row)``."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def arms_table(evaluation: Evaluation) -> ArmsTable:
    """Return every arm of every track, strict view, the headline F1 with its interval."""
    columns = ("track", "arm", "n", *_COLUMNS, "95 % interval", "p50", "$ per 1,000")
    rows = [
        (track, ARM_NAMES[result.arm], *score_cells(result))
        for track in TRACKS
        for arm in ARMS
        if (result := evaluation.arm(track, arm)) is not None
    ]
    return ArmsTable(columns, tuple(rows))


def score_cells(result: ArmResult) -> tuple[str, ...]:
    """Return n, the scores of ``_COLUMNS``, interval, median seconds and price as text."""
    scores = [result.metrics.get(names[result.track]) for names in _COLUMNS.values()]
    f1 = scores[-1]
    return (
        str(f1.n) if f1 else MISSING,
        *(percent(score.value) if score else MISSING for score in scores),
        interval(f1) if f1 else MISSING,
        seconds(result.seconds_p50),
        usd(result.cost_per_1000_usd),
    )
