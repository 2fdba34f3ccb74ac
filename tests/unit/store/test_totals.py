"""The sums say at any moment what counting the calls would."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from slm_core.records import Call
from slm_core.store import Store
from slm_core.store.totals import bucket_of, seconds_of
from slm_core.testing.records import make_call

Sql = Callable[..., list[Any]]


def some_objections(call: Call) -> str | None:
    return None if call.success else f"failed: {call.error}"


def test_sums_follow_calls_and_claims_through_many_small_steps(store: Store) -> None:
    chance = random.Random(3)
    calls = [
        make_call(
            n,
            agent_name=f"agent-{n % 7}",
            model=f"model-{n % 3}",
            seconds=chance.lognormvariate(0, 1),
            success=n % 5 > 0,
            error=None if n % 5 else f"reason {n % 2}",
            cost_nanousd=None if n % 4 == 0 else n,
        )
        for n in range(300)
    ]
    for start in range(0, 300, 30):
        store.calls.add(calls[max(0, start - 10) : start + 30], some_objections)
        made = store.claims.make(size=50)
        waiting = sum(call.success for call in calls[: start + 30]) % 50
        assert store.calls.waiting() == waiting
        assert store.calls.count() == start + 30
        assert store.verify() == []
        for claim in made:
            store.claims.take(claim.id, "run")
            store.claims.done(claim.id, "run")
    assert store.calls.unusable() == {"failed: reason 0": 30, "failed: reason 1": 30}
    found = store.calls.stats()
    assert len(found) == 21
    assert sum(one.calls for one in found) == 300
    assert sum(one.unpriced for one in found) == 75


@pytest.mark.parametrize("seconds", [1e-6, 0.001, 0.8, 1.0, 59.9, 3600.0, 1e9])
def test_a_bucket_stands_for_its_times_to_two_percent(seconds: float) -> None:
    for time in (seconds, math.nextafter(seconds, math.inf), seconds * 1.0199):
        assert seconds_of(bucket_of(time)) == pytest.approx(time, rel=0.0200001)


@pytest.mark.parametrize("seconds", [0.0, -1.0, 1e-9])
def test_no_time_at_all_counts_as_a_microsecond(store: Store, seconds: float) -> None:
    store.calls.add([make_call(1, seconds=seconds)], lambda _: None)
    (stats,) = store.calls.stats()
    assert stats.seconds_p50 == pytest.approx(1e-6, rel=0.02)


@pytest.mark.parametrize(
    ("tampering", "found"),
    [
        ("UPDATE call_totals SET waiting = waiting + 1", "call_totals weather-desk/sub-agent"),
        ("UPDATE call_seconds SET calls = calls + 1", "call_seconds: the calls add up"),
        ("INSERT INTO call_reasons VALUES ('whim', 1)", "call_reasons: the calls add up"),
        ("DELETE FROM calls WHERE id = 'call-000001'", "call_totals weather-desk/sub-agent"),
    ],
)
def test_verify_counts_again(store: Store, sql: Sql, tampering: str, found: str) -> None:
    store.calls.add([make_call(n) for n in range(3)], lambda _: None)
    sql(tampering)
    assert any(line.startswith(found) for line in store.verify())
