from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from slm_core.training.packing import best_fit, share, steps_by_tokens

lengths = st.lists(st.integers(1, 60), max_size=60)


@given(lengths)
def test_bins_hold_every_item_once_and_never_too_much(items: list[int]) -> None:
    bins = best_fit(items, 64)
    assert sorted(n for one in bins for n in one) == list(range(len(items)))
    assert all(sum(items[n] for n in one) <= 64 for one in bins)
    # Best fit never leaves two bins half empty.
    halves = [one for one in bins if 2 * sum(items[n] for n in one) <= 64]
    assert len(halves) <= 1


def test_an_item_longer_than_a_bin_is_alone() -> None:
    assert best_fit([5, 90, 5], 64) == [[0, 2], [1]]


@given(lengths, st.integers(1, 4))
def test_steps_hold_every_row_once_and_fit_into_their_passes(items: list[int], passes: int) -> None:
    order = list(reversed(range(len(items))))
    steps = steps_by_tokens(order, items, 64, passes)
    assert sorted(n for step in steps for n in step) == sorted(order)
    for step in steps:
        assert step
        assert len(best_fit([items[n] for n in step], 64)) <= passes


def test_steps_of_many_rows_are_nearly_full() -> None:
    import random

    rng = random.Random(0)
    items = [int(min(2048, max(128, rng.lognormvariate(6.25, 0.6)))) for _ in range(1600)]
    steps = steps_by_tokens(range(1600), items, 8192, 4)
    full = sum(items) / ((len(steps) - 1) * 4 * 8192)
    assert full > 0.97


@given(lengths, st.integers(1, 5))
def test_a_share_is_even_up_to_one_item(items: list[int], parts: int) -> None:
    dealt = share(items, parts)
    assert sorted(n for part in dealt for n in part) == list(range(len(items)))
    sums = [sum(items[n] for n in part) for part in dealt]
    assert max(sums) - min(sums) <= max(items, default=0)
