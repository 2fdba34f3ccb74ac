"""Routes move by compare-and-set, and every move is kept."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from slm_core.errors import StoreError
from slm_core.records import Promotion, Route, Stage
from slm_core.store import Store

_numbers = itertools.count()


def promotion(
    adapter_id: str, from_stage: Stage | None, to_stage: Stage, **changes: Any
) -> Promotion:
    values: dict[str, Any] = {
        "id": f"promotion-{next(_numbers)}",
        "agent_name": "weather-desk",
        "track": "toolcall",
        "adapter_id": adapter_id,
        "from_stage": from_stage,
        "to_stage": to_stage,
        "previous_adapter_id": None,
        "decision_id": "decision-1",
        "who": "ada",
        "reason": "beats the teacher",
    }
    return Promotion(**(values | changes))


def go_live(store: Store, adapter_id: str, previous: str | None = None) -> Route:
    move = promotion(adapter_id, None, Stage.LIVE, previous_adapter_id=previous)
    return store.routes.move(move, None)


def test_an_adapter_walks_to_live(store: Store) -> None:
    assert store.routes.live("weather-desk", "toolcall") is None
    stages = [None, Stage.CANDIDATE, Stage.SHADOW, Stage.CANARY, Stage.LIVE]
    moves = [promotion("a", before, after) for before, after in itertools.pairwise(stages)]
    for version, move in enumerate(moves):
        route = store.routes.move(move, version or None)
        assert (route.stage, route.version) == (move.to_stage, version + 1)
    assert store.routes.live("weather-desk", "toolcall") == route
    assert store.routes.live("weather-desk", "structured") is None
    assert store.routes.live("other", "toolcall") is None
    assert store.routes.list() == (route,)
    assert store.routes.history("weather-desk", "toolcall") == tuple(moves)
    assert store.routes.history("weather-desk", "structured") == ()


def test_a_stale_view_of_the_route_is_refused(store: Store) -> None:
    store.routes.move(promotion("a", None, Stage.CANDIDATE), None)
    for move, version in (
        (promotion("a", None, Stage.CANDIDATE), None),
        (promotion("a", Stage.CANDIDATE, Stage.SHADOW), 2),
        (promotion("a", Stage.SHADOW, Stage.CANARY), 1),
        (promotion("b", Stage.CANDIDATE, Stage.SHADOW), 1),
    ):
        with pytest.raises(StoreError, match="has changed since it was looked at"):
            store.routes.move(move, version)
    assert len(store.routes.history("weather-desk", "toolcall")) == 1
    assert [(r.stage, r.version) for r in store.routes.list()] == [(Stage.CANDIDATE, 1)]


def test_going_live_retires_the_one_before(store: Store) -> None:
    go_live(store, "a")
    live = go_live(store, "b", previous="a")
    assert store.routes.live("weather-desk", "toolcall") == live
    assert [(r.adapter_id, r.stage, r.version) for r in store.routes.list()] == [
        ("a", Stage.RETIRED, 2),
        ("b", Stage.LIVE, 1),
    ]


def test_rolling_back_is_a_move_of_the_one_before(store: Store) -> None:
    go_live(store, "a")
    go_live(store, "b", previous="a")
    back = promotion("a", Stage.RETIRED, Stage.LIVE, previous_adapter_id="b")
    assert store.routes.move(back, 2).version == 3
    live = store.routes.live("weather-desk", "toolcall")
    assert live is not None
    assert live.adapter_id == "a"


def test_nobody_goes_live_over_an_adapter_they_did_not_see(store: Store) -> None:
    go_live(store, "a")
    for previous in (None, "c"):
        with pytest.raises(StoreError, match="Live adapter of 'weather-desk'"):
            go_live(store, "b", previous=previous)
    live = store.routes.live("weather-desk", "toolcall")
    assert live is not None
    assert live.adapter_id == "a"
    assert [r.adapter_id for r in store.routes.list()] == ["a"]


def test_an_adapter_that_retires_leaves_the_teacher(store: Store) -> None:
    go_live(store, "a")
    store.routes.move(promotion("a", Stage.LIVE, Stage.RETIRED), 1)
    assert store.routes.live("weather-desk", "toolcall") is None


def test_the_same_promotion_again_changes_nothing(store: Store) -> None:
    move = promotion("a", None, Stage.SHADOW)
    route = store.routes.move(move, None)
    assert store.routes.move(move, None) == route
    assert store.routes.history("weather-desk", "toolcall") == (move,)
    with pytest.raises(StoreError, match="already stored with other content"):
        store.routes.move(move.model_copy(update={"who": "eve"}), None)


def test_agents_and_tracks_do_not_meet(store: Store) -> None:
    go_live(store, "a")
    store.routes.move(promotion("a", None, Stage.LIVE, track="structured"), None)
    store.routes.move(promotion("a", None, Stage.LIVE, agent_name="billing"), None)
    assert [(r.agent_name, r.track) for r in store.routes.list()] == [
        ("billing", "toolcall"),
        ("weather-desk", "structured"),
        ("weather-desk", "toolcall"),
    ]
