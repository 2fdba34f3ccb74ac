"""The ladder, the recipe and the triage, as a pure function."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from slm_core.errors import ConfigError
from slm_core.records import Attempt, Fault, NextAction, Triage, utc_now
from slm_core.training import TrainingSpec
from slm_core.training.plan import Plan, first_plan
from slm_core.training.recovery import Retry, Stop, history_of, next_plan, resumed_plan

FOUR = ("GPU-a", "GPU-b", "GPU-c", "GPU-d")


def make_spec(**changes: Any) -> TrainingSpec:
    return TrainingSpec(**({"base_model": "nano", "micro_batch": 2, "accumulation": 16} | changes))


def make_attempt(
    last_step: int, plan: Plan, kind: str = "worker_killed", *, first_step: int = 0
) -> Attempt:
    return Attempt(
        number=1,
        started_at=utc_now(),
        ended_at=utc_now(),
        first_step=first_step,
        last_step=last_step,
        fault=Fault(kind=kind, message="It died.", step=last_step),
        plan=plan.model_dump(mode="json"),
    )


def decide(
    spec: TrainingSpec,
    plan: Plan,
    kind: str,
    *,
    history: list[Attempt] | None = None,
    triage: Triage | None = None,
    earlier: list[Attempt] | None = None,
) -> Retry | Stop:
    fault = Fault(kind=kind, message="It died.")
    attempts = [make_attempt(5, plan, kind)] if history is None else history
    return next_plan(spec, plan, fault, attempts, triage, earlier=earlier or [])


def climb(spec: TrainingSpec, gpus: tuple[str, ...] = ()) -> tuple[list[Plan], Stop]:
    """Run out of GPU memory at the first step, again and again."""
    plan, history = first_plan(spec, gpus), []
    plans = [plan]
    for _ in range(20):
        history.append(make_attempt(0, plan, "out_of_gpu_memory"))
        decision = decide(spec, plan, "out_of_gpu_memory", history=history)
        if isinstance(decision, Stop):
            return plans, decision
        plan = decision.plan
        plans.append(plan)
    pytest.fail("it never stops")


def test_the_ladder_goes_from_the_least_to_the_most_harmful() -> None:
    plans, stop = climb(make_spec(world_size=4), FOUR)
    assert [plan.changes[-1] for plan in plans[1:]] == [
        "expandable_segments",
        "base model in nf4",
        "max_length 2048 -> 1536",
        "max_length 1536 -> 1024",
        "world_size 4 -> 2",
        "world_size 2 -> 1",
    ]
    last = plans[-1]
    assert last.expandable_segments
    assert last.gradient_checkpointing
    assert (last.quantization, last.max_length, last.world_size) == ("nf4", 1024, 1)
    assert (last.gpus, last.pass_tokens) == (("GPU-a",), 2048)
    # What is learned: as many rows per step as ever, and every rung told.
    assert {plan.rows_per_step for plan in plans} == {32}
    assert all(change in stop.reason for change in last.changes)


def test_each_rung_changes_nothing_but_what_it_says() -> None:
    plans, _ = climb(make_spec(shorter_lengths=()))
    told = {"changes", "gradient_checkpointing"}
    for before, after in itertools.pairwise(plans):
        a, b = before.model_dump(), after.model_dump()
        assert len([key for key in a if a[key] != b[key] and key not in told]) == 1


def test_rungs_that_do_not_apply_are_left_out() -> None:
    plans, _ = climb(make_spec(quantization="nf4", shorter_lengths=(4096, 2048)))
    assert plans[-1].changes == ("expandable_segments",)
    plans, _ = climb(make_spec(shorter_lengths=()))
    assert plans[-1].changes == ("expandable_segments", "base model in nf4")
    plans, _ = climb(make_spec(gradient_checkpointing="off"))
    assert not any(plan.gradient_checkpointing for plan in plans)


def test_a_model_that_is_spread_is_not_quantized_and_keeps_two_gpus() -> None:
    plans, _ = climb(make_spec(world_size=4, shard=True), FOUR)
    assert {plan.quantization for plan in plans} == {"none"}
    assert plans[-1].world_size == 2


def test_the_recipe_halves_all_at_once_and_at_most_twice() -> None:
    plans, stop = climb(make_spec(on_oom="recipe", world_size=4), FOUR)
    seen = [(p.rows_per_step, p.max_length, p.world_size, p.expandable_segments) for p in plans]
    assert seen == [(32, 2048, 4, False), (16, 1536, 2, True), (8, 1024, 1, True)]
    assert {plan.quantization for plan in plans} == {"none"}
    assert "rows_per_step 32 -> 16, max_length 2048 -> 1536, world_size 4 -> 2" in stop.reason


def test_the_policy_stop_stops_at_once() -> None:
    plans, stop = climb(make_spec(on_oom="stop"))
    assert len(plans) == 1
    assert "on_oom='stop'" in stop.reason


@pytest.mark.parametrize("kind", ["worker_killed", "worker_crashed", "hung", "cuda_error"])
def test_other_faults_resume_the_same_plan(kind: str) -> None:
    plan = first_plan(make_spec()).model_copy(update={"changes": ("expandable_segments",)})
    decision = decide(make_spec(), plan, kind)
    assert isinstance(decision, Retry)
    assert decision.plan == plan
    assert kind in decision.reason


@pytest.mark.parametrize(
    "kind", ["diverged", "refused", "disk_full", "checkpoint_corrupt", "interrupted"]
)
def test_what_would_happen_again_is_not_tried_again(kind: str) -> None:
    assert isinstance(decide(make_spec(), first_plan(make_spec()), kind), Stop)


@pytest.mark.parametrize(
    ("steps", "goes_on"),
    [
        ([5], True),
        ([5, 5], True),
        ([0, 0], True),
        ([0, 0, 0], False),
        ([5, 5, 5], True),
        ([5, 5, 5, 5], False),
        ([5, 5, 5, 6], True),
        ([5, 4, 6, 6, 3], True),
        ([5, 4, 6, 6, 3, 2], False),
    ],
)
def test_three_attempts_without_a_new_step_are_the_end(steps: list[int], goes_on: bool) -> None:
    plan = first_plan(make_spec())
    history = [make_attempt(step, plan) for step in steps]
    decision = decide(make_spec(), plan, "worker_killed", history=history)
    assert isinstance(decision, Retry) == goes_on
    if isinstance(decision, Stop):
        assert "3 attempts in a row" in decision.reason


def test_steps_that_an_earlier_call_has_taken_are_no_progress() -> None:
    plan = first_plan(make_spec())
    history = [make_attempt(step, plan) for step in (7, 8, 9)]
    earlier = [make_attempt(10, plan)]
    assert isinstance(decide(make_spec(), plan, "hung", history=history), Retry)
    assert isinstance(decide(make_spec(), plan, "hung", history=history, earlier=earlier), Stop)


def test_smaller_steps_are_compared_by_the_rows_they_read() -> None:
    large = first_plan(make_spec())
    small = large.model_copy(update={"rows_per_step": 16, "changes": ("recipe: ...",)})
    history = [make_attempt(20, large, "out_of_gpu_memory")]
    history += [make_attempt(step, small) for step in (20, 38, 39)]
    assert isinstance(decide(make_spec(), small, "hung", history=history), Stop)
    history[-1] = make_attempt(41, small)
    assert isinstance(decide(make_spec(), small, "hung", history=history), Retry)


def test_the_host_may_run_out_of_memory_once() -> None:
    plan = first_plan(make_spec())
    kind = "out_of_host_memory"
    assert isinstance(decide(make_spec(), plan, kind), Retry)
    history = [make_attempt(5, plan), make_attempt(5, plan, kind)]
    assert isinstance(decide(make_spec(), plan, kind, history=history), Retry)
    decision = decide(make_spec(), plan, kind, history=[*history, make_attempt(5, plan, kind)])
    assert isinstance(decision, Stop)
    assert "host" in decision.reason


@pytest.mark.parametrize(
    "action", [a for a in NextAction if a not in (NextAction.RESUME, NextAction.DROP_GPU)]
)
def test_what_a_person_must_do_comes_first(action: NextAction) -> None:
    triage = Triage(action=action, reason="The driver is gone.", commands=("reboot",))
    decision = decide(make_spec(), first_plan(make_spec()), "cuda_error", triage=triage)
    assert isinstance(decision, Stop)
    assert decision.triage is triage
    assert "The driver is gone." in decision.reason


def test_a_lost_gpu_needs_an_examination() -> None:
    plan = first_plan(make_spec(), FOUR[:1])
    for kind in ("gpu_lost", "driver_hung"):
        assert isinstance(decide(make_spec(), plan, kind), Stop)
        well = Triage(action=NextAction.RESUME, reason="It works again.")
        assert isinstance(decide(make_spec(), plan, kind, triage=well), Retry)


def drop(sick: tuple[str, ...], survivors: tuple[str, ...]) -> Triage:
    reason = "A GPU fell off the bus."
    return Triage(action=NextAction.DROP_GPU, reason=reason, sick=sick, survivors=survivors)


@pytest.mark.parametrize(
    ("gpus", "sick", "left", "world_size"),
    [
        (FOUR, ("GPU-b",), ("GPU-a", "GPU-c", "GPU-d"), 2),
        (FOUR, ("GPU-a", "GPU-c"), ("GPU-b", "GPU-d"), 2),
        (FOUR, ("GPU-a", "GPU-b", "GPU-c"), ("GPU-d",), 1),
        # What the worker saw was not named, or named by numbers: what works is known by UUID.
        ((), ("GPU-b",), ("GPU-a", "GPU-c", "GPU-d"), 2),
        (("0", "1", "2", "3"), ("GPU-b",), ("GPU-a", "GPU-c", "GPU-d"), 2),
    ],
)
def test_a_sick_gpu_is_left_out(
    gpus: tuple[str, ...], sick: tuple[str, ...], left: tuple[str, ...], world_size: int
) -> None:
    spec = make_spec(world_size=4)
    survivors = tuple(gpu for gpu in FOUR if gpu not in sick)
    decision = decide(spec, first_plan(spec, gpus), "gpu_lost", triage=drop(sick, survivors))
    assert isinstance(decision, Retry)
    assert (decision.plan.gpus, decision.plan.world_size) == (left, world_size)
    assert f"without {', '.join(sick)}" in decision.plan.changes[-1]
    assert "fell off the bus" in decision.reason


def test_too_few_gpus_are_the_end() -> None:
    one = make_spec()
    triage = drop(("GPU-a",), ())
    decision = decide(one, first_plan(one, ("GPU-a",)), "gpu_lost", triage=triage)
    assert isinstance(decision, Stop)
    assert decision.triage is triage
    spread = make_spec(world_size=2, shard=True)
    plan = first_plan(spread, ("GPU-a", "GPU-b"))
    assert isinstance(decide(spread, plan, "gpu_lost", triage=drop(("GPU-a",), ("GPU-b",))), Stop)


def test_dropping_gpus_ends_too() -> None:
    spec = make_spec(world_size=4)
    plan, history = first_plan(spec, FOUR), []
    for _ in range(10):
        history.append(make_attempt(0, plan, "gpu_lost"))
        triage = drop(plan.gpus[:1], plan.gpus[1:])
        decision = decide(spec, plan, "gpu_lost", history=history, triage=triage)
        if isinstance(decision, Stop):
            return
        plan = decision.plan
    pytest.fail("it never stops")


def test_a_sick_gpu_that_was_not_in_use_leaves_the_plan_as_it_is() -> None:
    """Each time another change, no attempt would ever count as in vain."""
    spec = make_spec(world_size=4)
    plan, history = first_plan(spec, FOUR), []
    for number in range(1, 10):
        history.append(make_attempt(0, plan, "gpu_lost"))
        decision = decide(spec, plan, "gpu_lost", history=history, triage=drop(("GPU-z",), FOUR))
        if isinstance(decision, Stop):
            assert number == 3
            return
        assert decision.plan == plan
        assert "fell off the bus" in decision.reason
    pytest.fail("it never stops")


def test_a_run_goes_on_with_the_plan_it_had_reached() -> None:
    spec = make_spec(world_size=4)
    assert resumed_plan(spec, None, FOUR) == first_plan(spec, FOUR)
    last = first_plan(spec, FOUR).model_copy(update={"quantization": "nf4", "changes": ("nf4",)})
    elsewhere = ("GPU-x", "GPU-y", "GPU-z", "GPU-w")
    assert resumed_plan(spec, last, elsewhere) == last.model_copy(update={"gpus": elsewhere})
    fewer = resumed_plan(spec, last, elsewhere[:3])
    assert (fewer.gpus, fewer.world_size) == (elsewhere[:3], 2)
    assert resumed_plan(spec, last, ()).world_size == 4
    with pytest.raises(ConfigError, match="at least 2"):
        resumed_plan(make_spec(world_size=2, shard=True), None, ("GPU-a",))


def test_the_history_tells_each_attempt() -> None:
    plan = first_plan(make_spec())
    attempt = make_attempt(9, plan, "hung", first_step=4).model_copy(
        update={"reason": "out of GPU memory: expandable_segments", "recoveries": ("split",)}
    )
    (told,) = history_of([attempt])
    assert told == {
        "attempt": 1,
        "steps": "4-9",
        "reason": "out of GPU memory: expandable_segments",
        "recoveries": ["split"],
        "fault": "hung",
        "message": "It died.",
    }
