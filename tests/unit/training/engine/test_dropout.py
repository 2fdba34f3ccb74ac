from __future__ import annotations

import numpy as np
import pytest
import torch

from slm_core.training.engine.dropout import dropped, feature_keys, token_keys

ROWS, LENGTH, WIDTH = 64, 100, 192


def masks(rate: float, seeds: list[int], name: str = "layers.0.q_proj") -> torch.Tensor:
    keys = torch.from_numpy(token_keys(seeds, [LENGTH] * len(seeds)))
    ones = torch.ones(len(keys), WIDTH)
    return dropped(ones, keys, feature_keys(name, WIDTH), rate) == 0


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5])
def test_the_share_that_is_dropped_is_the_rate(rate: float) -> None:
    mask = masks(rate, list(range(ROWS)))
    n = mask.numel()
    # Six standard deviations of a binomial share.
    assert abs(mask.float().mean().item() - rate) < 6 * (rate * (1 - rate) / n) ** 0.5
    for axis in (0, 1):
        shares = mask.float().mean(axis)
        spread = (rate * (1 - rate) / mask.shape[axis]) ** 0.5
        assert shares.std().item() == pytest.approx(spread, rel=0.25)


def test_what_is_kept_is_scaled_up() -> None:
    keys = torch.from_numpy(token_keys([1], [LENGTH]))
    out = dropped(torch.ones(LENGTH, WIDTH), keys, feature_keys("a", WIDTH), 0.2)
    assert set(out.unique().tolist()) == {0.0, 1.25}


def test_masks_of_rows_features_and_layers_are_unrelated() -> None:
    rate = 0.5
    one, two = masks(rate, [1]), masks(rate, [2])
    other_layer = masks(rate, [1], "layers.1.q_proj")
    for a, b in ((one, two), (one, other_layer), (one[:-1], one[1:]), (one[:, :-1], one[:, 1:])):
        agree = (a == b).float().mean().item()
        assert abs(agree - 0.5) < 6 * (0.25 / a.numel()) ** 0.5


def test_a_row_has_its_mask_wherever_it_lies() -> None:
    alone = token_keys([5], [LENGTH])
    beside = token_keys([9, 5, 3], [33, LENGTH, 12])
    assert np.array_equal(alone, beside[33 : 33 + LENGTH])
