"""Early stopping and the watch over loss and gradient: right, and the same after a resume."""

from __future__ import annotations

import json
import math
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from slm_core.training.convergence import EarlyStopping, Watch, perplexity

LOSSES = st.lists(st.floats(min_value=0, max_value=20), min_size=1, max_size=40)


def test_perplexity_of_a_loss() -> None:
    assert perplexity(math.log(7)) == pytest.approx(7)
    assert [perplexity(loss) for loss in (None, math.nan, math.inf, 1e4)] == [None] * 4


def stopped_at(losses: list[float], patience: int, gain: float = 0.0) -> int | None:
    early = EarlyStopping(patience, gain)
    for number, loss in enumerate(losses):
        early.add(number, loss)
        if early.reason:
            return number
    return None


def test_it_stops_after_so_many_validations_without_a_better_loss() -> None:
    early = EarlyStopping(patience=2)
    heard = [(early.add(step, loss), early.reason) for step, loss in ((4, 2.0), (8, 1.0), (12, 1))]
    assert heard == [(True, None), (True, None), (False, None)]
    assert not early.add(16, 1.5)
    assert early.reason == "no better validation loss for 2 validations"
    assert (early.best_step, early.best_loss) == (8, 1.0)


def test_small_gains_add_up_but_each_is_the_best_to_keep() -> None:
    # Falls by 0.04 each time: every third one is 0.1 below the last that counted.
    falling = [1 - 0.04 * number for number in range(12)]
    assert stopped_at(falling, 3, 0.1) is None
    assert stopped_at(falling, 2, 0.1) == 2
    early = EarlyStopping(1, 0.5)
    assert [early.add(step, loss) for step, loss in enumerate((1.0, 0.9))] == [True, True]
    assert (early.best_step, early.reason is None) == (1, False)


def test_without_patience_it_only_remembers() -> None:
    early = EarlyStopping(None)
    for step in range(50):
        early.add(step, float(step + 1))
    assert (early.reason, early.best_step, early.without_gain) == (None, 0, 49)


def test_a_loss_that_is_not_finite_is_never_the_best() -> None:
    early = EarlyStopping(2)
    assert not early.add(1, math.nan)
    assert early.add(2, 3.0)
    assert not early.add(3, -math.inf)
    assert (early.best_step, early.without_gain) == (2, 1)


@given(LOSSES, st.integers(1, 5))
def test_it_stops_where_the_definition_says(losses: list[float], patience: int) -> None:
    def without_gain(upto: int) -> int:
        return upto - losses.index(min(losses[: upto + 1]))

    expected = next((n for n in range(len(losses)) if without_gain(n) >= patience), None)
    assert stopped_at(losses, patience) == expected


@given(LOSSES, st.data(), st.floats(0, 2))
def test_a_resumed_run_stops_at_the_same_step(
    losses: list[float], data: st.DataObject, gain: float
) -> None:
    cut = data.draw(st.integers(0, len(losses)))
    whole, broken = EarlyStopping(3, gain), EarlyStopping(3, gain)
    for number, loss in enumerate(losses):
        if number == cut:
            saved = json.loads(json.dumps(broken.as_state()))
            broken = EarlyStopping.from_state(saved, 3, gain)
        assert whole.add(number, loss) == broken.add(number, loss)
        assert whole.reason == broken.reason
    assert whole.as_state() == broken.as_state()


def watched(steps: list[tuple[float, float]], **how: float) -> list[tuple[int, str]]:
    watch = Watch(**how)  # pyright: ignore[reportArgumentType]
    return [
        (note.step, note.kind)
        for number, (loss, norm) in enumerate(steps, start=1)
        for note in watch.add(number, loss, norm)
    ]


def test_a_sound_run_is_left_alone() -> None:
    wobble = [0.15 * math.sin(7 * n) for n in range(120)]
    steps = [(2.4 * 0.97**n + 0.2 + w, 1 + 2 * abs(w)) for n, w in enumerate(wobble)]
    assert watched(steps[:80]) == []


def test_a_rising_loss_is_reported_once_an_episode() -> None:
    calm, wild = [(0.5, 1.0)] * 20, [(9.0, 1.0)] * 30
    found = [step for step, kind in watched([*calm, *wild]) if kind == "divergence"]
    assert len(found) == 1
    # One bad step is not a diverging run; the mean of ten has to rise.
    assert 22 <= found[0] <= 30
    # It may begin to rise at once: compared with the first losses.
    at_once = watched([(2.5, 1.0), (1.2, 1.0), *wild])
    assert [step for step, kind in at_once if kind == "divergence"] == [10]
    twice = [*calm, *wild, *[(0.4, 1.0)] * 80, *wild]
    assert [kind for _, kind in watched(twice)].count("divergence") == 2


@pytest.mark.parametrize("loss", [0.09, 0.9])
def test_noise_at_a_small_loss_is_no_divergence(loss: float) -> None:
    steps = [(0.01, 1.0)] * 20 + [(loss, 1.0)] * 20
    assert [kind for _, kind in watched(steps) if kind == "divergence"] == []


def test_a_loss_that_stays_where_it_is_makes_one_plateau() -> None:
    falling = [(3 * 0.9**n + 0.5, 1.0) for n in range(50)]
    found = watched([*falling, *[(0.5, 1.0)] * 200], window=30)
    assert [kind for _, kind in found] == ["plateau"]
    assert 50 < found[0][0] < 130
    # It falls again, and stays again.
    again = watched([*falling, *[(0.5, 1.0)] * 100, *[(0.2, 1.0)] * 100], window=30)
    assert [kind for _, kind in again] == ["plateau", "plateau"]


def test_a_gradient_far_above_the_usual_is_reported_but_not_every_time() -> None:
    steps = [(1.0 - n / 100, 1.0) for n in range(60)]
    steps[20] = steps[22] = steps[24] = (0.8, 10.1)
    assert watched(steps) == [(21, "gradient_spike")]
    steps[20] = steps[22] = steps[24] = (0.8, 9.9)
    assert watched(steps) == []
    # In the first steps nothing is usual yet.
    assert watched([(1.0, 1.0), (1.0, 50.0), (1.0, 1.0)]) == []


def test_a_message_holds_the_numbers() -> None:
    watch = Watch()
    for step in range(1, 21):
        watch.add(step, 1.0, 2.0)
    [note] = watch.add(21, 1.0, 40.0)
    assert "40" in note.message
    assert "20 times the usual 2" in note.message


@given(
    st.lists(st.tuples(st.floats(0, 30), st.floats(0, 1e6)), max_size=120),
    st.integers(0, 120),
)
def test_a_resumed_watch_says_the_same(steps: list[tuple[float, float]], cut: int) -> None:
    whole, broken = Watch(20), Watch(20)
    for number, (loss, norm) in enumerate(steps):
        if number == cut:
            broken = Watch.from_state(json.loads(json.dumps(broken.as_state())), 20)
        assert whole.add(number, loss, norm) == broken.add(number, loss, norm)
    assert whole.as_state() == broken.as_state()


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=60))
@example([-sys.float_info.max] * 2)
def test_values_that_are_not_finite_are_left_to_others(values: list[float]) -> None:
    watch = Watch()
    for step, value in enumerate(values):
        watch.add(step, value, value)
    json.dumps(watch.as_state(), allow_nan=False)
