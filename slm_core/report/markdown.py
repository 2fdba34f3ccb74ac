"""The report for people in a pull request or in Prefect: verdict first, tables after.

It holds no prompt text. Whatever a record says is escaped: a bar or a line break in it would
break a table, a tag or a link would be one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from slm_core.records import ARMS, Attempt, Track
from slm_core.report.document import Document, Scores, TrackReport
from slm_core.report.words import (
    ARM_NAMES,
    EXACT,
    HEADLINE,
    MISSING,
    OUTCOME_MARKS,
    arm_in_words,
    compared,
    count,
    evidence,
    fact,
    failure_classes,
    gate_number,
    interval,
    meaning,
    metric_name,
    metrics_of,
    percent,
    rows_scored,
    seconds,
    usd,
    verdict,
)

_SPECIAL = re.compile(r"([\\`*\[\]|<>])")


def to_markdown(document: Document) -> str:
    """Return the report as GitHub-flavoured Markdown."""
    mark = OUTCOME_MARKS[document.outcome]
    lines = [
        f"# {mark} {document.outcome}: {verdict(document)}",
        "",
        *meaning(document),
        "",
        f"_{escape(document.title)}, {document.created_at:%Y-%m-%d %H:%M} UTC, "
        f"{count(document.calls_captured)} calls captured, {count(document.examples)} examples._",
        "",
        *_section("What to do next", [f"- {escape(action)}" for action in document.next_actions]),
    ]
    for track, report in document.tracks.items():
        lines += _section(f"Scores: {track}", _scores(track, report))
    lines += _section("Differences", _differences(document))
    lines += _section("Gates", _gates(document))
    lines += _section("What goes wrong", _failures(document))
    lines += _section("Latency and cost", _speed(document))
    lines += _section("Data", _data(document))
    lines += _section("Training", _training(document))
    lines += _section("Lineage", _lineage(document))
    return "\n".join(lines).rstrip() + "\n"


def escape(text: str) -> str:
    """Return ``text`` on one line, with nothing in it that Markdown or HTML would act on.

    Only code between two backticks stays code, in which nothing else acts.
    """
    parts = " ".join(text.split()).split("`")
    if len(parts) % 2 == 0:
        return _plain("`".join(parts))
    return "`".join(
        part.replace("|", "\\|") if number % 2 else _plain(part)
        for number, part in enumerate(parts)
    )


def _plain(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", text.replace("&", "&amp;"))


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return [f"## {title}", "", *lines, ""] if lines else []


def table_lines(columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> list[str]:
    """Return a table whose first ``left`` columns are text and the others numbers."""
    rule = ["---"] * left + ["---:"] * (len(columns) - left)
    return [f"| {' | '.join(cells)} |" for cells in (columns, rule, *rows)]


def _scores(track: Track, report: TrackReport) -> list[str]:
    columns = [f"n = {count(rows_scored(report))}", *(ARM_NAMES[arm] for arm in ARMS)]
    rows = [
        [_bold(metric_name(metric)) if metric == HEADLINE[track] else escape(metric_name(metric))]
        + [_score(report.arms.get(arm), metric) for arm in ARMS]
        for metric in metrics_of(report)
    ]
    rows.append(
        [f"{metric_name(HEADLINE[track])}, read leniently"]
        + [_score(report.arms_lenient.get(arm), HEADLINE[track]) for arm in ARMS]
    )
    return table_lines(columns, rows)


def _score(scores: Scores | None, metric: str) -> str:
    score = (scores or {}).get(metric)
    return MISSING if score is None else f"{percent(score.value)} ({interval(score)})"


def _differences(document: Document) -> list[str]:
    lines: list[str] = []
    for track, report in document.tracks.items():
        for pair, metrics in report.paired.items():
            a, b = (arm_in_words(arm) for arm in pair.split("_vs_"))
            lines += [
                f"- {track}, {metric_name(metric)}: the {a} is "
                f"{compared(metric, metrics[metric]).phrase} than the {b} "
                f"{evidence(metrics[metric])}."
                for metric in (HEADLINE[track], EXACT[track])
                if metric in metrics
            ]
    return lines


def _gates(document: Document) -> list[str]:
    marks = {"pass": "✓ pass", "fail": "✕ fail", "inconclusive": "? inconclusive"}
    rows = [
        [
            escape(gate.gate) + ("" if gate.required else " (advice)"),
            gate.track or "both",
            marks[gate.verdict],
            escape(gate.reason),
            gate_number(gate.value),
            gate_number(gate.threshold),
            count(gate.n),
        ]
        for gate in document.gates
    ]
    columns = ["Gate", "Track", "Verdict", "Why", "Value", "Threshold", "n"]
    return table_lines(columns, rows, left=4) if rows else []


def _failures(document: Document) -> list[str]:
    rows = [
        [f"{track}: {escape(kind)}"]
        + [count(failures.get(kind, 0)) if failures is not None else MISSING for failures in by_arm]
        for track, report in document.tracks.items()
        for by_arm in [[report.failures.get(arm) for arm in ARMS]]
        for kind in failure_classes(report)
    ]
    return table_lines(["Rows", *(ARM_NAMES[arm] for arm in ARMS)], rows) if rows else []


def _speed(document: Document) -> list[str]:
    rows: list[list[str]] = []
    for track, report in document.tracks.items():
        for arm in ARMS:
            latency = report.latency.get(arm)
            if latency is not None:
                rows.append(
                    [
                        f"{track}: {ARM_NAMES[arm]}",
                        escape(report.models.get(arm) or MISSING),
                        seconds(latency.p50_seconds),
                        seconds(latency.p95_seconds),
                        usd(report.cost_per_1000_usd.get(arm)),
                    ]
                )
    return table_lines(["Arm", "Model", "p50", "p95", "Per 1,000 calls"], rows, left=2)


def _data(document: Document) -> list[str]:
    rows = [["Calls captured", count(document.calls_captured)]]
    rows.append(["Examples", count(document.examples)])
    rows += [[f"Rows in {split}", count(n)] for split, n in (document.rows or {}).items()]
    drops = sorted((document.drops or {}).items(), key=lambda drop: (-drop[1], drop[0]))
    rows += [[f"Left out: {escape(reason)}", count(n)] for reason, n in drops]
    return table_lines(["Calls and examples", "Number"], rows)


def _training(document: Document) -> list[str]:
    lines: list[str] = []
    if document.training:
        facts = [[escape(key), escape(fact(value))] for key, value in document.training.items()]
        lines = table_lines(["Fact", "Value"], facts)
    if document.attempts:
        lines += [
            "",
            *table_lines(
                ["Attempt", "Steps", "Plan", "Ended by"], map(_attempt, document.attempts), 4
            ),
        ]
    return lines


def _attempt(attempt: Attempt) -> list[str]:
    fault = attempt.fault
    return [
        str(attempt.number),
        f"{attempt.first_step} to {attempt.last_step}",
        escape(", ".join(f"{key} {value}" for key, value in attempt.plan.items())) or MISSING,
        escape(f"{fault.kind}: {fault.message}") if fault else "its end",
    ]


def _lineage(document: Document) -> list[str]:
    facts = document.lineage.model_dump()
    rows = [[key.replace("_", " "), escape(str(value))] for key, value in facts.items() if value]
    rows.append(["seed", str(document.seed)])
    rows += [[f"{escape(stage)} took", seconds(time)] for stage, time in document.timings.items()]
    return table_lines(["What", "Which"], rows, left=2)


def _bold(text: str) -> str:
    return f"**{escape(text)}**"
