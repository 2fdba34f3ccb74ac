"""Metrics of one arm on one track, each with n and a 95 % interval.

Rates are shares of rows and carry Wilson intervals; where conversations hold several rows, a
bootstrap over conversations widens them. Precision, recall and F1 are micro (counts summed
over rows first); ``macro_`` is the mean of the rows' F1. They always carry that bootstrap. A
row that could not be read stays in every n: its gold is missed, and it predicts nothing, so
read precision beside recall.

``parsed`` rows are well-formed answers of the track: calls, or the refusal. The over-call
rate is the share of no-call rows whose output makes a call, or tries to; it asks what the
output means, so both views agree on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from slm_core.errors import EvaluationError
from slm_core.evaluation.intervals import (
    Floats,
    cluster_sums,
    percentile,
    resample,
    wilson,
)
from slm_core.prompting.formats import NO_CALL_JSON, NO_CALL_TEXT
from slm_core.records import CaseResult, DomainScore, FailureClass, Interval, Metric, Track, View

_NO_CALL = (NO_CALL_TEXT, NO_CALL_JSON)
_SAYS_NOTHING = (FailureClass.EMPTY, FailureClass.ERROR)


class Totals(NamedTuple):
    """Sums over rows: one number each, or one per resample."""

    rows: Floats
    parsed: Floats
    name_match: Floats
    exact: Floats
    true_positives: Floats
    predicted: Floats
    gold: Floats
    f1: Floats
    no_call: Floats
    over_call: Floats


class Table(NamedTuple):
    """The scores of one arm on one track in one view, one row per case, sorted by case id."""

    case_ids: tuple[str, ...]
    clusters: list[str]
    columns: Floats
    """Shape (cases, fields of ``Totals``)."""

    def totals(self) -> Totals:
        """Return the sums over all rows."""
        return as_totals(self.columns.sum(axis=0))

    def cluster_count(self) -> int:
        """Return the number of conversations."""
        return len(set(self.clusters))


Rate = tuple[str, str]
"""Fields of ``Totals``: numerator and denominator."""


def as_totals(columns: Floats) -> Totals:
    """Return the last axis of ``columns`` by name."""
    return Totals(*np.moveaxis(columns, -1, 0))


def _ratio(part: Floats, whole: Floats, t: Totals) -> Floats:
    """Return part / whole; 0 where the whole is empty, and the exact rate where both sides are.

    Rows that have no arguments on either side are right or wrong only as a whole.
    """
    safe = np.where(whole > 0, whole, 1.0)
    empty = (t.predicted + t.gold) == 0
    return np.where(empty, t.exact / np.maximum(t.rows, 1.0), part / safe)


def _precision(t: Totals) -> Floats:
    return _ratio(t.true_positives, t.predicted, t)


def _recall(t: Totals) -> Floats:
    return _ratio(t.true_positives, t.gold, t)


def _f1(t: Totals) -> Floats:
    return _ratio(2 * t.true_positives, t.predicted + t.gold, t)


def _macro_f1(t: Totals) -> Floats:
    return t.f1 / np.maximum(t.rows, 1.0)


RATES: dict[Track, dict[str, Rate]] = {
    "structured": {
        "json_valid_rate": ("parsed", "rows"),
        "exact_match_rate": ("exact", "rows"),
        "over_call_rate": ("over_call", "no_call"),
    },
    "toolcall": {
        "valid_call_rate": ("parsed", "rows"),
        "name_match_rate": ("name_match", "rows"),
        "args_exact_rate": ("exact", "rows"),
        "over_call_rate": ("over_call", "no_call"),
    },
}
SCORES: dict[Track, dict[str, Callable[[Totals], Floats]]] = {
    "structured": {
        "field_precision": _precision,
        "field_recall": _recall,
        "field_f1": _f1,
        "macro_field_f1": _macro_f1,
    },
    "toolcall": {
        "args_precision": _precision,
        "args_recall": _recall,
        "args_f1": _f1,
        "macro_args_f1": _macro_f1,
    },
}


def tabulate(results: Sequence[CaseResult], view: View) -> Table:
    """Return the scores of ``results``, which are of one arm and track, as a table."""
    ordered = sorted(results, key=lambda result: result.case_id)
    columns = np.zeros((len(ordered), len(Totals._fields)))
    for row, result in zip(columns, ordered, strict=True):
        score = result.strict if view == "strict" else result.lenient
        no_call = result.gold in _NO_CALL
        row[:] = (
            1,
            score.parsed,
            score.name_match,
            score.exact,
            score.true_positives,
            score.predicted,
            score.gold,
            score.f1,
            no_call,
            no_call and _over_calls(result),
        )
    return Table(tuple(r.case_id for r in ordered), [r.cluster for r in ordered], columns)


def _over_calls(result: CaseResult) -> bool:
    return not result.lenient.exact and result.lenient.failure not in _SAYS_NOTHING


def draw(tables: Sequence[Table], *, seed: int, resamples: int) -> list[Totals]:
    """Return the totals of each table over the same resampled conversations.

    Because the tables hold the same cases, their draws are paired.

    Raises:
        EvaluationError: they hold different cases.
    """
    require_same_cases(tables)
    together = np.concatenate([table.columns for table in tables], axis=1)
    sums = cluster_sums(together, tables[0].clusters)
    draws = resample(sums, seed=seed, resamples=resamples)
    return [as_totals(part) for part in np.split(draws, len(tables), axis=1)]


def require_same_cases(tables: Sequence[Table]) -> None:
    """Check that all tables hold the same cases.

    Raises:
        EvaluationError: they do not, so that a difference would compare unlike things.
    """
    ids = [set(table.case_ids) for table in tables]
    partial = set.union(*ids) - set.intersection(*ids)
    if partial:
        raise EvaluationError(
            f"Arms that were not run on the same cases cannot be compared: {len(partial)} cases "
            "are missing from some. Evaluate all arms on one test set.",
            cases=[len(cases) for cases in ids],
        )


def measure(track: Track, table: Table, draws: Totals) -> dict[str, Metric]:
    """Return every metric of the track that the table has rows for."""
    totals, n = table.totals(), len(table.case_ids)
    clusters = table.cluster_count()
    found: dict[str, Metric] = {}
    for name, (part, whole) in RATES[track].items():
        count = int(getattr(totals, whole))
        if count:
            rate = float(getattr(totals, part)) / count
            low, high = _rate_interval(rate, count, table, draws, (part, whole))
            found[name] = Metric(value=rate, n=count, low=low, high=high)
    for name, formula in SCORES[track].items():
        value = float(formula(totals))
        low, high = percentile(formula(draws), value, clusters)
        found[name] = Metric(value=value, n=n, low=low, high=high)
    return found


def _rate_interval(rate: float, count: int, table: Table, draws: Totals, names: Rate) -> Interval:
    """Return the interval of a rate of ``count`` rows, which need not be independent.

    Where conversations hold several of them, it also covers the bootstrap over conversations.
    """
    rows = wilson(rate, count)
    part, whole = names
    counted = getattr(as_totals(table.columns), whole) > 0
    clusters = len({name for name, counts in zip(table.clusters, counted, strict=True) if counts})
    if clusters == count:
        return rows
    wholes = getattr(draws, whole)
    drawn = wholes > 0  # a resample may hold no row that this rate is about
    together = percentile(getattr(draws, part)[drawn] / wholes[drawn], rate, clusters)
    # A percentile interval is too short where few conversations differ, as near 0 and 1: what
    # rows have in common may only widen an interval.
    return Interval(min(rows.low, together.low), max(rows.high, together.high))


def domain_scores(results: Sequence[CaseResult], *, seed: int, resamples: int) -> list[DomainScore]:
    """Return the strict micro F1 of each domain, sorted; cases of no domain are left out.

    ``results`` are of one arm and track.
    """
    scores: list[DomainScore] = []
    for domain in sorted({result.domain for result in results} - {""}):
        table = tabulate([r for r in results if r.domain == domain], "strict")
        (draws,) = draw([table], seed=seed, resamples=resamples)
        value = float(_f1(table.totals()))
        low, high = percentile(_f1(draws), value, table.cluster_count())
        metric = Metric(value=value, n=len(table.case_ids), low=low, high=high)
        scores.append(DomainScore(domain=domain, f1=metric))
    return scores
