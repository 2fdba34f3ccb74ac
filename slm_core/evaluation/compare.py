"""Paired differences between two arms on the same cases; refuses to pair different ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from slm_core.evaluation.intervals import Floats, cluster_sums, percentile_difference
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

    Rates of rows also carry an exact p and the rows that only one arm got right. The p is
    McNemar's; where conversations hold several rows, it is that of ``sign_flip_exact``, for
    McNemar's test takes rows as independent.

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
        if clusters == len(a.table.case_ids):
            p = mcnemar_exact(a_only, b_only)
        else:
            surplus = cluster_sums((yes_a - yes_b)[:, None], a.table.clusters)[:, 0]
            p = sign_flip_exact([round(rows) for rows in surplus])
        found.append(
            PairedDifference(
                track=track,
                metric=name,
                a=a.arm,
                b=b.arm,
                difference=difference,
                mcnemar_p=p,
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


def sign_flip_exact(surplus: Sequence[int]) -> float:
    """Return the exact two-sided p of a test that takes conversations as independent, not rows.

    If the arms are equal, a conversation could as well have gone the other way round: every
    number of ``surplus`` is as likely with the other sign. The p is the share of all such
    choices whose sum is at least as far from 0 as the sum found. With one row a conversation
    that is McNemar's exact test.

    Fisher, R. A. (1935), The Design of Experiments, section 21, on the sum that Durkalski,
    V. L. et al. (2003), Statistics in Medicine 22, 2417-2428, use for clustered pairs.

    Args:
        surplus: by conversation, rows that only the first arm got right minus rows that only
            the second did.
    """
    sizes = [abs(rows) for rows in surplus if rows]
    reach = sum(sizes)
    chances = np.zeros(2 * reach + 1)  # of each sum from -reach to reach
    chances[reach] = 1.0
    for size in sizes:
        chances = (np.roll(chances, size) + np.roll(chances, -size)) / 2
    found = abs(sum(surplus))
    return min(1.0, float(chances[np.abs(np.arange(-reach, reach + 1)) >= found].sum()))


def _rate(totals: Totals, part: str, whole: str) -> Floats:
    return np.asarray(getattr(totals, part) / np.maximum(getattr(totals, whole), 1.0))


def _difference(a: Floats, b: Floats, draws: Floats, n: int, clusters: int) -> Metric:
    values = (float(a), float(b))
    low, high = percentile_difference(draws, values, clusters)
    return Metric(value=values[0] - values[1], n=n, low=low, high=high)
