"""Approaches side by side: JSON for scripts, CSV for a sheet, Markdown for people."""

from __future__ import annotations

import csv
import io
import logging
from pathlib import Path
from typing import NamedTuple

from slm_core.records import TRACKS, ApproachDifference, ArmResult, Comparison, Track
from slm_core.report.document import Difference
from slm_core.report.markdown import escape
from slm_core.report.table import score_cells
from slm_core.report.words import EXACT, HEADLINE, compared, evidence, metric_name
from slm_core.report.write import replace_text

log = logging.getLogger(__name__)

COLUMNS = ("valid", "exact", "precision", "recall", "F1", "95 % interval", "p50", "$ per 1,000")


class ComparisonPaths(NamedTuple):
    """The three files of a comparison."""

    json: Path
    csv: Path
    markdown: Path


def write_comparison(comparison: Comparison, folder: Path) -> ComparisonPaths:
    """Write ``comparison.json``, ``.csv`` and ``.md`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / "comparison"
    paths = ComparisonPaths(*(stem.with_suffix(kind) for kind in (".json", ".csv", ".md")))
    replace_text(paths.json, comparison.model_dump_json(indent=2) + "\n")
    replace_text(paths.csv, comparison_csv(comparison))
    replace_text(paths.markdown, comparison_markdown(comparison))
    log.info("comparison written approaches=%d folder=%s", len(comparison.approaches), folder)
    return paths


def comparison_csv(comparison: Comparison) -> str:
    """Return one line for each metric of each approach, in both views, as shares of 1."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(
        "track approach arm evaluation_id evaluated_at view metric value n low high".split()
    )
    for one in comparison.approaches:
        result = one.result
        for view, metrics in (("strict", result.metrics), ("lenient", result.lenient)):
            for name, metric in metrics.items():
                lines.writerow(
                    (
                        *(result.track, one.name, result.arm, one.evaluation_id),
                        *(one.evaluated_at.isoformat(), view, name),
                        *(metric.value, metric.n, metric.low, metric.high),
                    )
                )
    return text.getvalue()


def comparison_table(comparison: Comparison) -> list[dict[str, str]]:
    """Return one row for each approach on each track, strict scores, for a table of text."""
    return [
        {"track": one.result.track, "approach": one.name, **_cells(one.result)}
        | {"evaluation": one.evaluation_id}
        for one in comparison.approaches
    ]


def comparison_markdown(comparison: Comparison) -> str:
    """Return tables of scores, then the differences that matter, then what was left out."""
    lines = [
        "# Approaches side by side",
        "",
        f"All on the test set {escape(comparison.test_set_id)}. Strict scores in per cent; each "
        "difference is paired on the same rows.",
    ]
    for track in TRACKS:
        rows = [one for one in comparison.approaches if one.result.track == track]
        if not rows:
            continue
        lines += ["", f"## Scores: {track}", ""]
        lines.append(f"| {' | '.join(('approach', 'n', *COLUMNS, 'evaluated'))} |")
        lines.append(f"| --- {'| ---: ' * (len(COLUMNS) + 1)}| --- |")
        for one in rows:
            cells = (escape(one.name), *_cells(one.result).values())
            when = f"{one.evaluated_at:%Y-%m-%d %H:%M}"
            lines.append(f"| {' | '.join((*cells, when))} |")
        lines += ["", *_differences(comparison, track)]
    if comparison.not_compared:
        lines += ["", "## Left out", ""]
        lines += [
            f"- {escape(one.evaluation_id)}: {escape(one.reason)}"
            for one in comparison.not_compared
        ]
    return "\n".join(lines).rstrip() + "\n"


def _cells(result: ArmResult) -> dict[str, str]:
    return dict(zip(("n", *COLUMNS), score_cells(result), strict=True))


def _differences(comparison: Comparison, track: Track) -> list[str]:
    shown = (HEADLINE[track], EXACT[track])
    return [
        _sentence(one)
        for one in comparison.differences
        if one.paired.track == track and one.paired.metric in shown
    ]


def _sentence(one: ApproachDifference) -> str:
    pair = Difference(
        difference=one.paired.difference,
        mcnemar_p=one.paired.mcnemar_p,
        a_only=one.paired.a_only,
        b_only=one.paired.b_only,
    )
    metric = one.paired.metric
    return (
        f"- {metric_name(metric)}: {escape(one.a)} is {compared(metric, pair).phrase} than "
        f"{escape(one.b)} {evidence(pair)}."
    )
