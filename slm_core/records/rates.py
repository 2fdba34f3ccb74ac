"""A rate and how far it can be trusted: the Wilson 95 % interval."""

from __future__ import annotations

import math
from typing import NamedTuple

Z95 = 1.959963984540054
"""97.5 % quantile of the standard normal distribution."""


class Interval(NamedTuple):
    """Bounds of a 95 % interval."""

    low: float
    high: float


def wilson(rate: float, n: int) -> Interval:
    """Return the Wilson score interval of a rate over ``n`` trials.

    Wilson, E. B. (1927), Journal of the American Statistical Association 22, 209-212.
    """
    if n == 0:
        return Interval(0.0, 1.0)
    z2 = Z95 * Z95
    middle = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n))
    # At 0 and 1 the bound is exact; rounding must not move it.
    low = 0.0 if rate <= 0 else max(0.0, middle - half)
    high = 1.0 if rate >= 1 else min(1.0, middle + half)
    return Interval(low, high)
