"""A canary is taken back on enough evidence, and only then."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from slm_core.errors import StoreUnavailable
from slm_core.records import (
    Stage,
    TrafficKey,
    TrafficLimits,
    TrafficOutcome,
    TrafficRole,
    utc_now,
)
from slm_core.serving import guard_routes
from slm_core.serving.promotion import move_route, step_back
from slm_core.store import Store, open_store
from slm_core.testing.records import make_adapter
from slm_core.testing.routes import move

ADAPTER = make_adapter()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(f"sqlite:///{tmp_path}/slm.db") as store:
        for to in (Stage.SHADOW, Stage.CANARY):
            move(store, to, **({"share": 0.2} if to is Stage.CANARY else {}))
        yield store


def see(
    store: Store, role: TrafficRole, *, version: int = 2, age_minutes: int = 0, **counts: int
) -> None:
    for outcome, n in counts.items():
        key = TrafficKey(
            agent_name="desk",
            track="toolcall",
            adapter_id=ADAPTER.id,
            version=version,
            role=role,
            outcome=TrafficOutcome(outcome),
        )
        store.traffic.add({key: n}, utc_now() - timedelta(minutes=age_minutes))


def stage(store: Store) -> Stage:
    (route,) = store.routes.list()
    return route.stage


@pytest.mark.parametrize(
    ("role", "counts", "weak"),
    [
        ("answer", {"answered": 40, "error": 1}, False),
        ("answer", {"answered": 30, "timeout": 4}, False),  # 11.8 %, but 4.7 % is possible
        ("answer", {"answered": 30, "timeout": 3, "format": 3, "busy": 1}, True),
        ("answer", {"error": 29}, False),  # too few to tell
        ("answer", {"unsupported": 30}, True),
        ("shadow", {"agreed": 60, "disagreed": 30}, False),
        ("shadow", {"agreed": 40, "disagreed": 40}, True),
        ("shadow", {"incomparable": 90, "skipped": 90, "agreed": 5}, False),
    ],
)
def test_a_canary_steps_back_when_the_whole_interval_is_beyond_the_limit(
    store: Store, role: TrafficRole, counts: dict[str, int], weak: bool
) -> None:
    see(store, role, **counts)
    moved = guard_routes(store)
    assert [route.stage for route in moved] == ([Stage.SHADOW] if weak else [])
    assert stage(store) is (Stage.SHADOW if weak else Stage.CANARY)
    if weak:
        last = store.routes.history("desk", "toolcall")[-1]
        assert last.who == "guard"
        assert "limit" in last.reason
        assert guard_routes(store) == []


def test_only_this_canary_and_its_window_count(store: Store) -> None:
    see(store, "answer", version=1, error=100)
    see(store, "answer", age_minutes=90, error=100)
    assert guard_routes(store) == []
    see(store, "answer", age_minutes=50, error=100)
    assert len(guard_routes(store)) == 1


def test_a_canary_is_judged_by_the_limits_that_it_was_approved_with(store: Store) -> None:
    (route,) = store.routes.list()
    move_route(
        store,
        route,
        agent_name="desk",
        track="toolcall",
        adapter_id=ADAPTER.id,
        to_stage=Stage.CANARY,
        previous=None,
        decision_id="other",
        who="ann",
        reason="it may fail",
        share=0.5,
        limits=TrafficLimits(max_fall_back=0.9),
    )
    see(store, "answer", version=3, answered=50, error=50)
    assert guard_routes(store) == []
    assert stage(store) is Stage.CANARY


def test_a_canary_that_was_taken_back_leaves_the_traffic_and_may_come_again(store: Store) -> None:
    (route,) = store.routes.list()
    assert route.share == 0.2
    back = step_back(store, route, who="guard", reason="weak")
    assert (back.stage, back.share) == (Stage.SHADOW, None)
    assert store.verify() == []


def test_a_database_that_does_not_answer_is_no_other_person(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    see(store, "answer", error=100)

    def gone(*_: object) -> None:
        raise StoreUnavailable("The database does not answer.")

    with monkeypatch.context() as patch:
        patch.setattr(type(store.routes), "move", gone)
        with pytest.raises(StoreUnavailable):
            guard_routes(store)
    assert len(guard_routes(store)) == 1
