"""Counts add up, whoever adds them, and belong to one version of a route and one time."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

from slm_core.records import Route, Stage, TrafficKey, TrafficOutcome, TrafficRole
from slm_core.store import Store

NOON = datetime(2026, 3, 14, 12, 7, tzinfo=UTC)
ROUTE = Route(agent_name="desk", track="toolcall", adapter_id="a", stage=Stage.CANARY, version=3)


def key(
    outcome: TrafficOutcome, version: int = 3, role: TrafficRole = "answer", agent: str = "desk"
) -> TrafficKey:
    return TrafficKey(
        agent_name=agent,
        track="toolcall",
        adapter_id="a",
        version=version,
        role=role,
        outcome=outcome,
    )


def test_counts_add_up_per_role_and_outcome(store: Store) -> None:
    store.traffic.add({})
    store.traffic.add({key(TrafficOutcome.ANSWERED): 5, key(TrafficOutcome.TIMEOUT): 0}, NOON)
    store.traffic.add(
        {
            key(TrafficOutcome.ANSWERED): 2,
            key(TrafficOutcome.AGREED, role="shadow"): 1,
            key(TrafficOutcome.ANSWERED, agent="other"): 9,
        },
        NOON + timedelta(hours=1),
    )
    assert store.traffic.totals(ROUTE) == Counter(
        {("answer", TrafficOutcome.ANSWERED): 7, ("shadow", TrafficOutcome.AGREED): 1}
    )


def test_a_count_belongs_to_a_version_and_a_quarter_of_an_hour(store: Store) -> None:
    for version, moment in ((2, NOON), (3, NOON), (3, NOON + timedelta(minutes=30))):
        store.traffic.add({key(TrafficOutcome.ANSWERED, version): 1}, moment)
    answered = ("answer", TrafficOutcome.ANSWERED)
    assert store.traffic.totals(ROUTE)[answered] == 3
    assert store.traffic.totals(ROUTE, version=3)[answered] == 2
    late = NOON + timedelta(minutes=10)
    assert store.traffic.totals(ROUTE, version=3, since=late)[answered] == 1
    # The quarter that holds the moment counts as a whole.
    assert store.traffic.totals(ROUTE, since=NOON + timedelta(minutes=7))[answered] == 3


def test_nothing_is_lost_when_several_add_at_once(store: Store) -> None:
    kinds = list(TrafficOutcome)

    def add(number: int) -> None:
        order = kinds[number:] + kinds[:number]
        for _ in range(10):
            store.traffic.add({key(kind): 1 for kind in order}, NOON)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(4)))
    assert set(store.traffic.totals(ROUTE).values()) == {40}
