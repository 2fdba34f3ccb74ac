"""Paired differences between two arms on the same cases; refuses to pair different ones."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from slm_core.evaluation.intervals import Floats, percentile_difference
from slm_core.evaluation.metrics import (
    RATES,
    SCORES,
    Table,
    Totals,
    as_totals,
    require_same_cases,
)
from slm_core.records import ArmName, Metric, PairedDifference, Track


class Side(NamedTuple):
    """One arm of a comparison."""

    arm: ArmName
    table: Table
    draws: Totals
    """From the same call of ``metrics.draw`` as the other side's."""


def paired_differences(track: Track, a: Side, b: Side) -> list[PairedDifference]:
    """Return a minus b for every metric of the track.

    Rates of rows also carry McNemar's exact p and the rows that only one arm got right.

    Raises:
        EvaluationError: the arms were not run on the same cases.
    """
    require_same_cases([a.table, b.table])
    totals_a, totals_b = a.table.totals(), b.table.totals()
    clusters = a.table.cluster_count()
    found: list[PairedDifference] = []
    for name, (part, whole) in RATES[track].items():
        n = int(getattr(totals_a, whole))
        if n == 0:
            continue
        difference = _difference(
            _rate(totals_a, part, whole),
            _rate(totals_b, part, whole),
            _rate(a.draws, part, whole) - _rate(b.draws, part, whole),
            n,
            clusters,
        )
        yes_a, yes_b = (getattr(as_totals(side.table.columns), part) for side in (a, b))
        a_only, b_only = int(np.sum(yes_a > yes_b)), int(np.sum(yes_b > yes_a))
        found.append(
            PairedDifference(
                track=track,
                metric=name,
                a=a.arm,
                b=b.arm,
                difference=difference,
                mcnemar_p=mcnemar_exact(a_only, b_only),
                a_only=a_only,
                b_only=b_only,
            )
        )
    for name, formula in SCORES[track].items():
        draws = formula(a.draws) - formula(b.draws)
        n = len(a.table.case_ids)
        difference = _difference(formula(totals_a), formula(totals_b), draws, n, clusters)
        found.append(
            PairedDifference(track=track, metric=name, a=a.arm, b=b.arm, difference=difference)
        )
    return found


def mcnemar_exact(a_only: int, b_only: int) -> float:
    """Return the exact two-sided p of McNemar's test: Binomial(a_only + b_only, 1/2).

    McNemar, Q. (1947), Psychometrika 12, 153-157.
    """
    n = a_only + b_only
    tail = term = 1
    for i in range(min(a_only, b_only)):
        term = term * (n - i) // (i + 1)
        tail += term
    return min(1.0, 2 * tail / 2**n)


def _rate(totals: Totals, part: str, whole: str) -> Floats:
    return np.asarray(getattr(totals, part) / np.maximum(getattr(totals, whole), 1.0))


def _difference(a: Floats, b: Floats, draws: Floats, n: int, clusters: int) -> Metric:
    values = (float(a), float(b))
    low, high = percentile_difference(draws, values, clusters)
    return Metric(value=values[0] - values[1], n=n, low=low, high=high)
