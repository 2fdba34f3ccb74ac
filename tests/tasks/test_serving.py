"""Who is promoted, for whom, and how often."""

from __future__ import annotations

import pytest

from slm_core.dataset import DatasetSpec, build
from slm_core.errors import IllegalPromotion
from slm_core.prompting.formats import render_completion
from slm_core.records import Call, Dataset, DropReason, Stage, ToolUse
from slm_core.serving import promote as promote_route
from slm_core.settings import Settings
from slm_core.store import Store
from slm_core.testing.records import make_adapter, make_call, make_decision
from tasks.serving import promote_adapter


def structured(number: int) -> Call:
    use = ToolUse(name="get_weather", arguments={"city": f"Town {number}"})
    return make_call(
        number,
        agent_name="intake",
        track=None,  # the caller did not say; the answer does
        response=render_completion("structured", [use]),
    )


@pytest.fixture
def dataset(settings: Settings) -> Dataset:
    """Two agents that were trained for, and one whose only call could not be used."""
    calls = [
        *(make_call(number) for number in range(6)),
        *(structured(number) for number in range(6, 12)),
        make_call(20, agent_name="failing-desk", success=False),
    ]
    built = build(calls, DatasetSpec(min_examples=3, min_split_rows=1), settings.home / "datasets")
    assert built.drops == {DropReason.FAILED: 1}
    return built


def promote(dataset: Dataset, *, live: bool = True) -> list[tuple[str, str, Stage, int]]:
    routes = promote_adapter.fn(make_adapter(), make_decision(), dataset, "run-1", live=live)
    return [(r.agent_name, r.track, r.stage, r.version) for r in routes]


def test_a_success_goes_live_for_every_agent_it_was_trained_for(
    dataset: Dataset, store: Store
) -> None:
    assert [row[:3] for row in promote(dataset)] == [
        ("intake", "structured", Stage.LIVE),
        ("weather-desk", "toolcall", Stage.LIVE),
    ]
    live = store.routes.live("intake", "structured")
    assert live is not None
    assert live.adapter_id == make_adapter().id
    assert store.routes.live("failing-desk", "toolcall") is None
    assert {move.decision_id for move in store.routes.history("intake", "structured")} == {
        make_decision().id
    }


def test_promoting_again_changes_nothing(dataset: Dataset, store: Store) -> None:
    assert promote(dataset) == promote(dataset)
    assert len(store.routes.history("intake", "structured")) == 1


def test_without_auto_promotion_the_adapter_waits_as_a_candidate(
    dataset: Dataset, store: Store
) -> None:
    assert [row[2] for row in promote(dataset, live=False)] == [Stage.CANDIDATE, Stage.CANDIDATE]
    assert store.routes.live("weather-desk", "toolcall") is None


def test_a_run_that_begins_again_leaves_what_a_person_let_go_on(
    dataset: Dataset, store: Store
) -> None:
    promote(dataset, live=False)
    move = {"adapter": make_adapter(), "decision": make_decision(), "who": "ann", "reason": "ok"}
    promote_route(store, agent_name="intake", track="structured", to_stage=Stage.SHADOW, **move)
    assert [row[2] for row in promote(dataset, live=False)] == [Stage.SHADOW, Stage.CANDIDATE]


def test_a_track_that_the_adapter_was_not_trained_for_is_left_alone(
    dataset: Dataset, store: Store
) -> None:
    adapter = make_adapter(tracks=("toolcall",))
    routes = promote_adapter.fn(adapter, make_decision(), dataset, "run-1", live=True)
    assert [route.track for route in routes] == ["toolcall"]


def test_a_track_that_was_not_measured_stays_with_the_teacher(
    dataset: Dataset, store: Store
) -> None:
    decision = make_decision()
    only = tuple(gate for gate in decision.gates if gate.track == "structured")
    decision = decision.model_copy(update={"gates": only})
    routes = promote_adapter.fn(make_adapter(), decision, dataset, "run-1", live=True)
    assert [route.track for route in routes] == ["structured"]


def test_a_decision_on_another_arm_promotes_no_adapter(dataset: Dataset, store: Store) -> None:
    decision = make_decision(adapter_id=None)
    assert promote_adapter.fn(make_adapter(), decision, dataset, "run-1", live=False) == []
    assert store.routes.list() == ()


def test_a_failure_never_goes_live(dataset: Dataset, store: Store) -> None:
    with pytest.raises(IllegalPromotion, match="is FAILURE"):
        promote_adapter.fn(make_adapter(), make_decision("FAILURE"), dataset, "run-1", live=True)
    assert store.routes.list() == ()
