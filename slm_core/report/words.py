"""Names, numbers and sentences, the same on the page, in Markdown and on the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from slm_core.records import ArmName, Metric, Outcome, Track
from slm_core.report.document import Difference, Document, TrackReport

MISSING = "–"
"""Shown where a number does not exist."""
NARROW = "\u202f"
"""A narrow space that does not break, between a number and its unit."""
MINUS = "\u2212"

ARM_NAMES: Mapping[ArmName, str] = {
    "teacher": "Teacher",
    "student": "Student",
    "student_cep": "Student + CEP",
    "adapter": "Adapter",
}
HEADLINE: Mapping[Track, str] = {"structured": "field_f1", "toolcall": "args_f1"}
EXACT: Mapping[Track, str] = {"structured": "exact_match_rate", "toolcall": "args_exact_rate"}
LOWER_IS_BETTER = frozenset({"over_call_rate"})
METRIC_NAMES: Mapping[str, str] = {
    "json_valid_rate": "Valid JSON",
    "exact_match_rate": "Exact match",
    "field_f1": "Field F1",
    "field_precision": "Field precision",
    "field_recall": "Field recall",
    "macro_field_f1": "Field F1, macro",
    "valid_call_rate": "Valid call",
    "name_match_rate": "Right tool",
    "args_exact_rate": "Exact arguments",
    "args_f1": "Argument F1",
    "args_precision": "Argument precision",
    "args_recall": "Argument recall",
    "macro_args_f1": "Argument F1, macro",
    "over_call_rate": "Over-call (less is better)",
}
OUTCOME_MARKS: Mapping[Outcome, str] = {"SUCCESS": "✓", "PARTIAL": "◐", "FAILURE": "✕"}


def arm_in_words(arm: str) -> str:
    """Return an arm's name inside a sentence: ``student + CEP``."""
    names: dict[str, str] = {str(key): name for key, name in ARM_NAMES.items()}
    name = names.get(arm, arm)
    return name[:1].lower() + name[1:]


def metric_name(metric: str) -> str:
    """Return a metric's name for people; an unknown one keeps its key."""
    return METRIC_NAMES.get(metric, metric)


def in_order(metrics: Iterable[str]) -> list[str]:
    """Return ``metrics`` in the order of ``METRIC_NAMES``, unknown ones last."""
    known = list(METRIC_NAMES)
    return sorted(metrics, key=lambda name: known.index(name) if name in known else len(known))


def percent(value: float | None) -> str:
    """Return a share as per cent: 0.975 as ``97.5 %``."""
    return MISSING if value is None else f"{value * 100:.1f}{NARROW}%"


def interval(metric: Metric) -> str:
    """Return the bounds of a share: ``92.1–99.0``."""
    return f"{metric.low * 100:.1f}–{metric.high * 100:.1f}"


def signed(value: float) -> str:
    """Return a difference of shares in points: 0.07 as ``+7.0``."""
    points = f"{abs(value) * 100:.1f}"
    if points == "0.0":
        return points
    return f"{'+' if value > 0 else MINUS}{points}"


def seconds(value: float | None) -> str:
    """Return a time: ``61 ms``, ``1.60 s``, ``3 min 20 s``."""
    if value is None:
        return MISSING
    if value < 1:
        return f"{value * 1000:.0f}{NARROW}ms" if value >= 0.01 else f"{value * 1000:.1f}{NARROW}ms"
    if value < 100:
        return f"{value:.2f}{NARROW}s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes}{NARROW}min {rest}{NARROW}s"


def duration(value: float) -> str:
    """Return a long time, roughly: ``40 s``, ``12 min``, ``3 h 5 min``."""
    if value < 90:
        return f"{value:.0f}{NARROW}s"
    hours, minutes = divmod(round(value / 60), 60)
    return f"{hours}{NARROW}h {minutes}{NARROW}min" if hours else f"{minutes}{NARROW}min"


def usd(value: float | None) -> str:
    """Return dollars with two significant digits or cents, whichever says more."""
    if value is None:
        return MISSING
    if value == 0 or value >= 0.1:
        return f"${value:,.2f}"
    return f"${value:.2g}" if value >= 0.0001 else f"${value:.1e}"


def count(value: int | None) -> str:
    """Return a number of things: ``12,345``."""
    return MISSING if value is None else f"{value:,}"


def verdict(document: Document) -> str:
    """Return the outcome as one short sentence."""
    if document.challenger != "adapter":
        return {
            "SUCCESS": "The student can replace the teacher as it is",
            "PARTIAL": "The student is not ready as it is",
            "FAILURE": "The student needs fine-tuning",
        }[document.outcome]
    return {
        "SUCCESS": "The adapter can replace the teacher",
        "PARTIAL": "The adapter is not ready yet",
        "FAILURE": "Keep the teacher",
    }[document.outcome]


def meaning(document: Document) -> list[str]:
    """Return what the headline numbers say, one sentence a track."""
    return [_track_sentence(document, track) for track in document.tracks]


def _track_sentence(document: Document, track: Track) -> str:
    report, arm, metric = document.tracks[track], document.challenger, HEADLINE[track]
    name = arm_in_words(arm)
    score = score_of(report, arm, metric)
    if score is None:
        return f"On {track} the {name} was not measured."
    start = f"On {track} the {name} reaches {percent(score.value)} {metric_name(metric)}"
    pair = report.paired.get(f"{arm}_vs_teacher", {}).get(metric)
    if pair is None:
        return f"{start}; it was not compared with the teacher."
    return f"{start}, {compared(metric, pair).phrase} than the teacher {evidence(pair)}."


class Compared(NamedTuple):
    """A paired difference, judged."""

    better: bool | None
    """None when the interval holds 0."""
    phrase: str


def compared(metric: str, pair: Difference) -> Compared:
    """Return whether the first arm is better, and by how much, ready for ``… than``."""
    difference = pair.difference
    points = f"{abs(difference.value) * 100:.1f} points"
    if difference.low <= 0 <= difference.high:
        if signed(difference.value) == "0.0":
            return Compared(None, "neither better nor worse")
        higher = (difference.value > 0) != (metric in LOWER_IS_BETTER)
        return Compared(None, f"not clearly {'better' if higher else 'worse'} ({points})")
    better = (difference.value > 0) != (metric in LOWER_IS_BETTER)
    return Compared(better, f"{points} {'better' if better else 'worse'}")


def evidence(pair: Difference) -> str:
    """Return what a difference rests on: interval, rows, and rows that only one got right."""
    difference = pair.difference
    said = [
        f"95{NARROW}% interval {signed(difference.low)} to {signed(difference.high)}",
        f"n{NARROW}={NARROW}{difference.n}",
    ]
    if pair.mcnemar_p is not None:
        said.append(
            f"{pair.a_only} against {pair.b_only} rows, McNemar p {p_value(pair.mcnemar_p)}"
        )
    return f"({'; '.join(said)})"


def p_value(p: float) -> str:
    """Return a p value that never claims to be 0."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def score_of(report: TrackReport, arm: ArmName, metric: str) -> Metric | None:
    """Return a strict score, or None when it does not exist."""
    return (report.arms.get(arm) or {}).get(metric)


def rows_scored(report: TrackReport) -> int | None:
    """Return how many rows the arms were scored on."""
    sizes = [m.n for scores in report.arms.values() if scores for m in scores.values()]
    return max(sizes, default=None)


def failure_classes(report: TrackReport) -> list[str]:
    """Return every failure class that any arm shows, the commonest first."""
    totals: Counter[str] = Counter()
    for failures in report.failures.values():
        totals.update(failures or {})
    return sorted(totals, key=lambda kind: (-totals[kind], kind))


def metrics_of(report: TrackReport) -> list[str]:
    """Return every metric that any arm has, in order."""
    return in_order({name for scores in report.arms.values() if scores for name in scores})


def gate_number(value: float | None) -> str:
    """Return a gate's value or threshold with three decimals."""
    return MISSING if value is None else f"{value:.3f}"


def fact(value: object) -> str:
    """Return a value of a record's free-form part, numbers as people write them."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
