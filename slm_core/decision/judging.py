"""From a number with its interval to a verdict with its reason.

One rule for all gates: ``pass`` when the whole 95 % interval is on the good side of the
threshold, ``fail`` when the whole interval is on the bad side, ``inconclusive`` between.
Missing or thin evidence is inconclusive, never a pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from slm_core.decision.evidence import Case
from slm_core.records import DomainScore, GateResult, Metric, Verdict

_TOO_CLOSE = 1e-4
_MOST_ROWS = 100_000
"""A score this close to a threshold, or a row count beyond this, allows no advice on rows."""


class Question(NamedTuple):
    """One gate put to one track."""

    case: Case
    gate: str
    what: str
    threshold: float
    required: bool = False
    strict: bool = False
    """The threshold itself is not enough."""


class Finding(NamedTuple):
    """A gate's result, and what would settle it."""

    result: GateResult
    rows_missing: int | None = None
    """Test rows that would probably settle an inconclusive gate; None when rows would not."""


def judge(asked: Question, metric: Metric | None) -> Finding:
    """Judge a metric by its whole interval."""
    if metric is None or not all(map(math.isfinite, (metric.value, metric.low, metric.high))):
        return answer(asked, "inconclusive", None, 0, f"{asked.what} was not measured")
    verdict = verdict_on(metric, asked.threshold, strict=asked.strict)
    relation = {
        "pass": "is above" if asked.strict else "is at least",
        "fail": "is not above" if asked.strict else "is below",
        "inconclusive": "may lie on either side of",
    }[verdict]
    reason = f"{asked.what} {show(metric)} {relation} {asked.threshold:.3g}"
    missing = _rows_missing(metric, asked.threshold) if verdict == "inconclusive" else None
    return answer(asked, verdict, metric.value, metric.n, reason, missing)


def verdict_on(metric: Metric, threshold: float, *, strict: bool = False) -> Verdict:
    """Return on which side of the threshold the whole interval lies."""
    if metric.low > threshold or (metric.low == threshold and not strict):
        return "pass"
    if metric.high < threshold or (metric.high == threshold and strict):
        return "fail"
    return "inconclusive"


def _rows_missing(metric: Metric, threshold: float) -> int | None:
    """Return how many more rows would probably take the interval off the threshold.

    An interval's half width shrinks with the square root of the rows.
    """
    distance = metric.value - threshold
    if abs(distance) < _TOO_CLOSE:
        return None
    half_width = metric.value - metric.low if distance > 0 else metric.high - metric.value
    shrink = half_width / distance
    rows = metric.n * shrink * shrink  # a power would overflow loudly
    return max(1, round(rows) - metric.n) if rows < _MOST_ROWS else None


def answer(
    asked: Question,
    verdict: Verdict,
    value: float | None,
    n: int,
    reason: str,
    rows_missing: int | None = None,
) -> Finding:
    """Return the finding; too few rows make any verdict inconclusive."""
    least = asked.case.spec.min_rows
    if value is not None and n < least:
        verdict, rows_missing = "inconclusive", max(least - n, rows_missing or 0)
        reason += f"; {n} rows are fewer than the {least} needed"
    result = GateResult(
        gate=asked.gate,
        track=asked.case.track,
        verdict=verdict,
        value=value,
        threshold=asked.threshold,
        n=n,
        required=asked.required,
        reason=reason,
    )
    return Finding(result, rows_missing)


def too_few_domains(asked: Question, thin: Sequence[DomainScore]) -> Finding:
    """Return the finding when no comparison is possible; ``thin`` domains have too few rows."""
    reason = "too few domains are known to compare them"
    if thin:
        least = asked.case.spec.min_domain_rows
        reason = f"{len(thin)} domain(s) have fewer than {least} rows"
    return answer(asked, "inconclusive", None, 0, reason, _thin_rows_missing(asked, thin))


def domain_answer(
    asked: Question, verdict: Verdict, value: float, reason: str, thin: Sequence[DomainScore]
) -> Finding:
    """Return the finding; a thin domain hides no weakness, but it may hide one."""
    rows = sum(domain.f1.n for domain in asked.case.domains)
    missing = None
    if thin and verdict != "fail":
        verdict, missing = "inconclusive", _thin_rows_missing(asked, thin)
        least = asked.case.spec.min_domain_rows
        reason += f"; {len(thin)} domain(s) have fewer than {least} rows"
    found = answer(asked, verdict, value, rows, reason, missing)
    weak = found.result.verdict == "fail"
    required = asked.required or weak
    return found._replace(result=found.result.model_copy(update={"required": required}))


def _thin_rows_missing(asked: Question, thin: Sequence[DomainScore]) -> int | None:
    least = asked.case.spec.min_domain_rows
    return sum(least - domain.f1.n for domain in thin) or None


def scaled(metric: Metric, factor: float, shift: float = 0.0) -> Metric:
    """Return ``shift + factor * metric``, interval included."""
    ends = sorted((shift + factor * metric.low, shift + factor * metric.high))
    value = shift + factor * metric.value
    return Metric(value=value, n=metric.n, low=ends[0], high=ends[1])


def show(metric: Metric) -> str:
    """Return the number with its interval and n."""
    return f"{metric.value:.3f} (95 % interval {metric.low:.3f} to {metric.high:.3f}, n {metric.n})"
