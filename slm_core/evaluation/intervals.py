"""95 % intervals: Wilson for independent rows, a seeded cluster bootstrap for all else.

Rows of one conversation are not independent, so the bootstrap resamples conversations. Where
all resamples agree it has nothing to say (10 of 10 right is not certainty); a Wilson interval
over the conversations then stands in, which is wide enough: no quantity within 0..1 varies
more than a coin of the same mean.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from slm_core.records import Interval, wilson

Floats = NDArray[np.float64]

_CELLS = 2_000_000
"""Resampled indices held in memory at once."""
_FLAT = 1e-12


def cluster_sums(columns: Floats, clusters: list[str]) -> Floats:
    """Return the columns summed per cluster, clusters in sorted order: (clusters, columns)."""
    names, codes = np.unique(np.array(clusters), return_inverse=True)
    sums = np.zeros((len(names), columns.shape[1]))
    np.add.at(sums, codes, columns)
    return sums


def resample(sums: Floats, *, seed: int, resamples: int) -> Floats:
    """Return column totals of ``resamples`` draws of clusters, with replacement.

    Shape (resamples, columns). The draws depend on the seed and the number of clusters only,
    so that two arms on the same cases are drawn alike: their differences are paired.
    """
    count = len(sums)
    random = np.random.default_rng(seed)
    size = max(1, _CELLS // count)
    totals = []
    for start in range(0, resamples, size):
        rows = min(size, resamples - start)
        drawn = random.integers(0, count, size=(rows, count), dtype=np.int64)
        drawn += np.arange(rows, dtype=np.int64)[:, None] * count
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        totals.append(times @ sums)
    return np.concatenate(totals)


def percentile(draws: Floats, value: float, clusters: int) -> Interval:
    """Return the percentile interval of the draws of a quantity within 0..1."""
    if np.ptp(draws) < _FLAT:
        return wilson(min(max(value, 0.0), 1.0), clusters)
    low, high = np.quantile(draws, (0.025, 0.975))
    return Interval(float(low), float(high))


def percentile_difference(draws: Floats, values: tuple[float, float], clusters: int) -> Interval:
    """Return the percentile interval of the draws of a difference of two such quantities.

    Where all draws agree, the two Wilson intervals are combined as for independent rates
    (Newcombe, R. G. (1998), Statistics in Medicine 17, 873-890, method 10).
    """
    if np.ptp(draws) >= _FLAT:
        low, high = np.quantile(draws, (0.025, 0.975))
        return Interval(float(low), float(high))
    a, b = values
    low_a, high_a = wilson(a, clusters)
    low_b, high_b = wilson(b, clusters)
    return Interval(
        max(-1.0, a - b - math.hypot(a - low_a, high_b - b)),
        min(1.0, a - b + math.hypot(high_a - a, b - low_b)),
    )
