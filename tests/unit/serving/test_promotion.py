"""An adapter goes live step by step, with a decision behind it, and can be taken back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slm_core.errors import IllegalPromotion, StoreError
from slm_core.records import Adapter, Decision, Route, Stage
from slm_core.serving import promote, roll_back
from slm_core.store import Store, open_store
from slm_core.testing.records import make_adapter, make_decision

STEPS = [Stage.CANDIDATE, Stage.SHADOW, Stage.CANARY, Stage.LIVE]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(f"sqlite:///{tmp_path}/slm.db") as store:
        yield store


def adapter(name: str = "a") -> Adapter:
    return make_adapter(id=f"adapter-{name}")


def move(store: Store, to: Stage, name: str = "a", **options: Any) -> Route:
    decision: Decision | None = make_decision(adapter_id=f"adapter-{name}")
    return promote(
        store,
        **{
            "adapter": adapter(name),
            "agent_name": "desk",
            "track": "toolcall",
            "decision": decision,
            "who": "ann",
            "reason": "better",
            "to_stage": to,
            **options,
        },
    )


def go_live(store: Store, name: str) -> None:
    for stage in STEPS:
        move(store, stage, name)


def back(store: Store) -> str:
    return roll_back(
        store, agent_name="desk", track="toolcall", who="bob", reason="worse"
    ).adapter_id


def live(store: Store) -> str | None:
    route = store.routes.live("desk", "toolcall")
    return route.adapter_id if route else None


def test_a_track_that_the_decision_says_nothing_about_takes_a_reason(store: Store) -> None:
    measured = make_decision(adapter_id="adapter-a")
    only = tuple(gate for gate in measured.gates if gate.track == "structured")
    decision = measured.model_copy(update={"gates": only})
    move(store, Stage.CANDIDATE)
    with pytest.raises(IllegalPromotion, match="says nothing about toolcall"):
        move(store, Stage.SHADOW, decision=decision)
    assert move(store, Stage.SHADOW, decision=decision, override_reason="seen by hand").version == 2


def test_the_steps_one_after_the_other(store: Store) -> None:
    for version, stage in enumerate(STEPS, start=1):
        route = move(store, stage)
        assert (route.stage, route.version) == (stage, version)
    assert live(store) == "adapter-a"
    assert live(store) is not None
    history = store.routes.history("desk", "toolcall")
    assert [p.from_stage for p in history] == [None, *STEPS[:-1]]
    assert {(p.who, p.reason, p.decision_id) for p in history} == {
        ("ann", "better", make_decision().id)
    }
    assert store.routes.live("desk", "structured") is None


def test_a_successor_retires_the_one_before(store: Store) -> None:
    go_live(store, "a")
    go_live(store, "b")
    assert live(store) == "adapter-b"
    assert {r.adapter_id: r.stage for r in store.routes.list()} == {
        "adapter-a": Stage.RETIRED,
        "adapter-b": Stage.LIVE,
    }
    assert store.routes.history("desk", "toolcall")[-1].previous_adapter_id == "adapter-a"


@pytest.mark.parametrize(
    ("path", "to", "legal"),
    [
        ([], Stage.CANARY, "candidate, shadow"),
        ([], Stage.LIVE, "auto-approval"),
        ([Stage.CANDIDATE], Stage.CANARY, "shadow, retired"),
        ([Stage.CANDIDATE], Stage.LIVE, "auto-approval"),
        ([Stage.SHADOW], Stage.LIVE, "canary, retired"),
        ([Stage.SHADOW, Stage.CANARY], Stage.SHADOW, "live, retired"),
        ([Stage.CANDIDATE, Stage.RETIRED], Stage.LIVE, "candidate"),
    ],
)
def test_steps_cannot_be_skipped(store: Store, path: list[Stage], to: Stage, legal: str) -> None:
    for stage in path:
        move(store, stage)
    before = store.routes.list()
    with pytest.raises(IllegalPromotion, match=legal):
        move(store, to)
    assert store.routes.list() == before


def test_what_is_there_already_stays(store: Store) -> None:
    go_live(store, "a")
    before = store.routes.history("desk", "toolcall")
    assert move(store, Stage.LIVE, decision=None).stage is Stage.LIVE
    assert store.routes.history("desk", "toolcall") == before


@pytest.mark.parametrize("path", [[], [Stage.CANDIDATE]])
def test_an_approved_success_may_go_live_directly(store: Store, path: list[Stage]) -> None:
    for stage in path:
        move(store, stage)
    assert move(store, Stage.LIVE, auto_approve=True).stage is Stage.LIVE


@pytest.mark.parametrize("outcome", ["PARTIAL", "FAILURE"])
@pytest.mark.parametrize("to", [Stage.SHADOW, Stage.LIVE])
def test_without_success_nobody_is_promoted(store: Store, outcome: Any, to: Stage) -> None:
    decision = make_decision(outcome, adapter_id="adapter-a")
    with pytest.raises(IllegalPromotion, match=f"{outcome}.*override") as caught:
        move(store, to, decision=decision, auto_approve=True)
    assert caught.value.context["gates"]
    assert store.routes.list() == ()


def test_an_override_goes_step_by_step_and_is_recorded(store: Store) -> None:
    options: dict[str, Any] = {
        "decision": make_decision("PARTIAL", adapter_id="adapter-a"),
        "override_reason": "only the rare domain is open",
    }
    with pytest.raises(IllegalPromotion):
        move(store, Stage.LIVE, auto_approve=True, **options)
    move(store, Stage.SHADOW, **options)
    (promotion,) = store.routes.history("desk", "toolcall")
    assert "rare domain" in promotion.reason


def test_a_decision_must_be_there_and_be_about_this_adapter(store: Store) -> None:
    with pytest.raises(IllegalPromotion, match="evaluate it first"):
        move(store, Stage.SHADOW, decision=None)
    with pytest.raises(IllegalPromotion, match="adapter-other"):
        move(store, Stage.SHADOW, decision=make_decision(adapter_id="adapter-other"))
    assert move(store, Stage.CANDIDATE, decision=None).stage is Stage.CANDIDATE


def test_an_adapter_answers_only_its_own_tracks(store: Store) -> None:
    with pytest.raises(IllegalPromotion, match="structured"):
        move(store, Stage.CANDIDATE, adapter=make_adapter(tracks=("structured",)))


def test_rolling_back_goes_one_further_each_time(store: Store) -> None:
    for name in "abc":
        go_live(store, name)
    assert back(store) == "adapter-b"
    assert live(store) == "adapter-b"
    assert back(store) == "adapter-a"
    with pytest.raises(IllegalPromotion, match="before adapter-a"):
        back(store)
    go_live(store, "d")
    assert back(store) == "adapter-a"
    assert store.routes.history("desk", "toolcall")[-1].who == "bob"


def test_rolling_back_passes_over_what_was_retired_by_itself(store: Store) -> None:
    go_live(store, "a")
    go_live(store, "b")
    move(store, Stage.RETIRED, "b", decision=None)
    assert live(store) is None
    with pytest.raises(IllegalPromotion, match="nothing to roll back"):
        back(store)
    go_live(store, "c")
    assert back(store) == "adapter-a"


def test_rolling_back_needs_the_one_before_to_be_retired_still(store: Store) -> None:
    go_live(store, "a")
    go_live(store, "b")
    move(store, Stage.CANDIDATE, "a")
    with pytest.raises(IllegalPromotion, match="candidate now"):
        back(store)


def test_an_outdated_view_does_not_win(store: Store) -> None:
    """What compare-and-set is for: a second person moved the route in between."""
    move(store, Stage.SHADOW)

    class Behind:
        """A store whose view of the route is old."""

        def __init__(self) -> None:
            self.routes = self
            (self._old,) = store.routes.list()

        def find(self, *_: str) -> Route:
            return self._old

        def __getattr__(self, name: str) -> Any:
            return getattr(store.routes, name)

    behind: Any = Behind()
    move(store, Stage.CANARY)
    with pytest.raises(StoreError, match="changed"):
        move(behind, Stage.RETIRED)
