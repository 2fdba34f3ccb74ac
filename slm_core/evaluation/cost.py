"""Latency and price of an arm. Rows that the backend failed on have neither."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from slm_core.records import CaseResult


class Latency(NamedTuple):
    """Seconds that a caller waits for an answer."""

    p50: float
    p95: float


def latency(results: Sequence[CaseResult]) -> Latency:
    """Return median and 95th percentile over the answered rows; 0 when none was answered."""
    seconds = [result.seconds for result in results if result.error is None]
    if not seconds:
        return Latency(0.0, 0.0)
    p50, p95 = np.quantile(seconds, (0.5, 0.95))
    return Latency(float(p50), float(p95))


def cost_per_1000_usd(results: Sequence[CaseResult]) -> float | None:
    """Return US dollars per 1,000 answered calls; None when the price of any is unknown."""
    costs = [result.cost_nanousd for result in results if result.error is None]
    known = [cost for cost in costs if cost is not None]
    if not known or len(known) < len(costs):
        return None
    return sum(known) / len(known) * 1000 / 1e9
