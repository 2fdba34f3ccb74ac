"""``slm adapters`` and ``slm routes``: from a decision to live, and back."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from slm_core.presets import RETRAIN_PRESETS
from slm_core.records import Adapter, Stage, TrafficKey, TrafficLimits, TrafficOutcome
from slm_core.serving import promote
from slm_core.store import Store
from slm_core.testing.records import make_adapter, make_call, make_decision
from slm_core.testing.scores import MADE_AT
from slm_core.training.orders import Order, OrderBook

HERE = ("--agent", "weather-desk", "--track", "toolcall")


@pytest.fixture
def adapters(store: Store) -> list[Adapter]:
    """Two adapters with a SUCCESS each, and one with a FAILURE."""
    store.calls.add([make_call(1)], lambda _: None)
    made = []
    for number, outcome in enumerate(("SUCCESS", "SUCCESS", "FAILURE")):
        adapter = make_adapter(id=f"adapter-{number}", weights_sha256=str(number))
        made.append(store.adapters.save(adapter))
        decision = make_decision(outcome, id=f"decision-{number}", adapter_id=adapter.id)
        store.decisions.save(decision)
    return made


def live(slm: Any) -> list[str]:
    return [one["adapter_id"] for one in slm.json("routes", "list") if one["stage"] == "live"]


def test_promote_and_roll_back(slm: Any, adapters: list[Adapter]) -> None:
    for adapter in adapters[:2]:
        done = slm("adapters", "promote", adapter.id, *HERE, "--reason", "beats the teacher")
        assert f"{adapter.id} is live" in done.stdout
        assert done.stderr == ""
    assert live(slm) == ["adapter-1"]
    slm("routes", "roll-back", "weather-desk", "toolcall", "--reason", "complaints")
    assert live(slm) == ["adapter-0"]

    moves = slm.json("routes", "history", "weather-desk", "toolcall")
    assert [move["reason"] for move in moves] == ["beats the teacher"] * 2 + ["complaints"]
    assert all(move["who"] for move in moves)
    assert "complaints" in slm("routes", "history", "weather-desk", "toolcall").stdout


def test_a_failure_goes_nowhere_without_a_reason_to_override(
    slm: Any, adapters: list[Adapter]
) -> None:
    promote = ("adapters", "promote", "adapter-2", *HERE, "--reason", "hope")
    assert "FAILURE" in slm.refused(*promote)
    assert "cannot go from no stage to live" in slm.refused(*promote, "--override", "I know")
    slm(*promote, "--override", "I know", "--to", "shadow")
    assert slm.json("routes", "list")[0]["stage"] == "shadow"


def test_an_agent_without_calls_may_be_mistyped(slm: Any, adapters: list[Adapter]) -> None:
    words = ("--agent", "wether-desk", "--track", "toolcall", "--reason", "new")
    done = slm("adapters", "promote", "adapter-0", *words)
    assert "wether-desk" in done.stderr
    assert "is live" in done.stdout


def test_show_tells_decisions_and_routes(slm: Any, adapters: list[Adapter]) -> None:
    slm("adapters", "promote", "adapter-0", *HERE, "--reason", "good")
    shown = slm("adapters", "show", "adapter-0").stdout
    assert "decision-0" in shown
    assert "weather-desk/toolcall" in shown
    full = slm.json("adapters", "show", "adapter-0")
    assert full["adapter"]["losses"]
    assert full["decisions"][0]["outcome"] == "SUCCESS"
    assert full["routes"][0]["stage"] == "live"
    listed = slm.json("adapters", "list")
    assert [one["id"] for one in listed] == ["adapter-0", "adapter-1", "adapter-2"]
    assert "losses" not in listed[0]
    assert "FAILURE" in slm("adapters", "list").stdout


def test_what_does_not_exist_is_named(slm: Any, adapters: list[Adapter]) -> None:
    assert "'adapter-9'" in slm.refused("adapters", "show", "adapter-9")
    nothing = ("adapters", "promote", "adapter-9", *HERE, "--reason", "x")
    assert "'adapter-9'" in slm.refused(*nothing)
    assert "nothing to roll back" in slm.refused(
        "routes", "roll-back", "weather-desk", "toolcall", "--reason", "x"
    )
    slm("adapters", "promote", "adapter-0", *HERE, "--reason", "good")
    said = slm.refused("routes", "history", "nobody", "toolcall")
    assert "weather-desk/toolcall" in said


def test_a_track_or_a_reason_cannot_be_left_out(slm: Any, adapters: list[Adapter]) -> None:
    assert "--reason" in slm.refused("adapters", "promote", "adapter-0", *HERE, status=2)
    assert "toolcal" in slm.refused("routes", "history", "weather-desk", "toolcal", status=2)


def test_the_last_decision_counts(slm: Any, store: Store, adapters: list[Adapter]) -> None:
    later = MADE_AT + timedelta(days=1)
    decision = {"id": "decision-again", "adapter_id": "adapter-0", "created_at": later}
    store.decisions.save(make_decision("FAILURE", **decision))
    said = slm.refused("adapters", "promote", "adapter-0", *HERE, "--reason", "it was good")
    assert "decision-again is FAILURE" in said


def test_a_canary_goes_live_by_the_limits_that_it_was_given(
    slm: Any, store: Store, adapters: list[Adapter]
) -> None:
    strict = TrafficLimits(max_disagreement=0.05)
    for stage in (Stage.SHADOW, Stage.CANARY):
        route = promote(
            store,
            adapter=adapters[0],
            agent_name="weather-desk",
            track="toolcall",
            decision=make_decision(id="decision-0", adapter_id="adapter-0"),
            who="ann",
            reason="good",
            to_stage=stage,
            limits=strict,
        )
    key = {"agent_name": "weather-desk", "track": "toolcall", "adapter_id": "adapter-0"}
    counts: list[tuple[Any, TrafficOutcome, int]] = [
        ("answer", TrafficOutcome.ANSWERED, 200),
        ("shadow", TrafficOutcome.AGREED, 180),
        ("shadow", TrafficOutcome.DISAGREED, 20),
    ]
    for role, outcome, n in counts:
        one = TrafficKey(**key, version=route.version, role=role, outcome=outcome)  # type: ignore[arg-type]
        store.traffic.add({one: n})
    live_now = ("adapters", "promote", "adapter-0", *HERE, "--reason", "good")
    assert "20 of 200" in slm.refused(*live_now)
    (listed,) = slm.json("routes", "list")
    assert listed["traffic"]["disagreement"]["threshold"] == strict.max_disagreement
    slm(*live_now, "--to", "canary", "--share", "0.5")
    assert store.routes.history("weather-desk", "toolcall")[-1].limits == strict
    slm("adapters", "promote", "adapter-1", *HERE, "--reason", "new", "--to", "shadow")
    usual = RETRAIN_PRESETS["nano"].promotion.limits
    assert store.routes.history("weather-desk", "toolcall")[-1].limits == usual


def test_a_first_step_has_the_limits_of_the_plan_that_the_adapter_was_made_by(
    slm: Any, store: Store, slm_home: Path, adapters: list[Adapter]
) -> None:
    plan = RETRAIN_PRESETS["nano"].promotion.model_copy(
        update={"limits": TrafficLimits(max_disagreement=0.01)}
    )
    spec = RETRAIN_PRESETS["nano"].model_copy(update={"promotion": plan})
    order = Order(run_id=adapters[0].run_id, flow="retrain", spec=spec.model_dump(mode="json"))
    OrderBook(slm_home / "runs").write(order)
    slm("adapters", "promote", "adapter-0", *HERE, "--reason", "new", "--to", "shadow")
    assert store.routes.history("weather-desk", "toolcall")[-1].limits == plan.limits
