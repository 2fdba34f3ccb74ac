"""Latency and price."""

from __future__ import annotations

import pytest

from slm_core.evaluation.cost import cost_per_1000_usd, latency
from slm_core.evaluation.scoring import score_unparsed
from slm_core.records import CaseResult, Example, FailureClass

EXAMPLE = Example(id="e", track="structured", prompt=(), completion="", conversation_id="c")


def row(seconds: float, cost: int | None, error: str | None = None) -> CaseResult:
    score = score_unparsed(EXAMPLE, FailureClass.EMPTY)
    return CaseResult(
        case_id="e",
        track="structured",
        arm="teacher",
        output="",
        gold="",
        strict=score,
        lenient=score,
        cluster="c",
        seconds=seconds,
        prompt_tokens=1,
        completion_tokens=1,
        cost_nanousd=cost,
        error=error,
    )


def test_latency_and_price_by_hand():
    rows = [row(float(i), 2_000_000) for i in range(1, 22)]
    assert latency(rows) == (11.0, 20.0)
    assert cost_per_1000_usd(rows) == pytest.approx(2.0)


def test_a_local_model_costs_nothing_and_an_unknown_price_is_none():
    assert cost_per_1000_usd([row(1, 0), row(1, 0)]) == 0.0
    assert cost_per_1000_usd([row(1, 0), row(1, None)]) is None


def test_rows_that_failed_have_neither():
    rows = [row(1.0, 1000), row(60.0, None, error="timed out")]
    assert latency(rows) == (1.0, 1.0)
    assert cost_per_1000_usd(rows) == pytest.approx(0.001)
    assert latency(rows[1:]) == (0.0, 0.0)
    assert cost_per_1000_usd(rows[1:]) is None
