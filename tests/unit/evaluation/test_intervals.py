"""Wilson and bootstrap intervals against known values."""

from __future__ import annotations

import numpy as np
import pytest

from slm_core.evaluation.intervals import (
    cluster_sums,
    percentile,
    percentile_difference,
    resample,
    wilson,
)


@pytest.mark.parametrize(
    ("rate", "n", "low", "high"),
    [
        # Newcombe (1998), Statistics in Medicine 17, 857-872, table I, method 3.
        (81 / 263, 263, 0.2553, 0.3662),
        (15 / 148, 148, 0.0624, 0.1605),
        (0 / 20, 20, 0.0, 0.1611),
        (1 / 29, 29, 0.0061, 0.1718),
        # n / (n + z^2)
        (1.0, 10, 0.7225, 1.0),
    ],
)
def test_wilson_agrees_with_published_values(rate, n, low, high):
    assert wilson(rate, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_at_the_edges():
    assert wilson(0.0, 0) == (0.0, 1.0)
    assert wilson(1.0, 7).high == 1.0
    assert wilson(0.0, 7).low == 0.0


def test_clusters_are_summed_in_sorted_order():
    columns = np.array([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])
    assert cluster_sums(columns, ["b", "a", "b"]).tolist() == [[2.0, 20.0], [5.0, 50.0]]


def test_resamples_depend_on_the_seed_alone_and_keep_columns_together():
    sums = np.stack([np.arange(50.0), 2 * np.arange(50.0), np.ones(50)], axis=1)
    draws = resample(sums, seed=7, resamples=300)
    assert draws.shape == (300, 3)
    assert np.array_equal(draws, resample(sums, seed=7, resamples=300))
    assert not np.array_equal(draws, resample(sums, seed=8, resamples=300))
    assert np.array_equal(draws[:, 1], 2 * draws[:, 0])
    assert set(draws[:, 2]) == {50.0}


def test_resamples_do_not_depend_on_how_they_are_cut_into_blocks():
    sums = np.random.default_rng(0).random((1500, 2))
    many = resample(sums, seed=1, resamples=2000)  # more than one block of 2,000,000 indices
    assert np.array_equal(many[:500], resample(sums, seed=1, resamples=500))
    assert len({row.tobytes() for row in many}) == 2000


def test_bootstrap_of_a_mean_agrees_with_its_standard_error():
    values = np.random.default_rng(3).random(400)
    sums = np.stack([values, np.ones(400)], axis=1)
    draws = resample(sums, seed=0, resamples=4000)
    low, high = percentile(draws[:, 0] / draws[:, 1], float(values.mean()), 400)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.004)
    assert high == pytest.approx(values.mean() + half, abs=0.004)


def test_rows_of_one_conversation_count_as_one():
    right = np.array([float(i % 2) for i in range(40) for _ in range(10)])
    columns = np.stack([right, np.ones(400)], axis=1)

    def width(clusters: list[str]) -> float:
        draws = resample(cluster_sums(columns, clusters), seed=0, resamples=2000)
        low, high = percentile(draws[:, 0] / draws[:, 1], 0.5, len(set(clusters)))
        return high - low

    apart = width([str(i) for i in range(400)])
    together = width([str(i // 10) for i in range(400)])
    assert together / apart == pytest.approx(10**0.5, rel=0.1)


def test_where_all_resamples_agree_wilson_stands_in():
    assert percentile(np.ones(500), 1.0, 10) == wilson(1.0, 10)
    assert percentile(np.full(500, 0.3), 0.3, 1) == wilson(0.3, 1)


def test_difference_of_two_perfect_arms_is_not_certain_to_be_zero():
    low, high = percentile_difference(np.zeros(500), (1.0, 1.0), 10)
    assert (low, high) == pytest.approx((-0.2775, 0.2775), abs=1e-4)
    low, high = percentile_difference(np.ones(500), (1.0, 0.0), 100)
    assert high == 1.0
    assert 0.9 < low < 1.0


def test_difference_takes_percentiles_of_its_draws():
    draws = np.linspace(-0.1, 0.3, 1001)
    low, high = percentile_difference(draws, (0.6, 0.5), 50)
    assert (low, high) == pytest.approx((-0.09, 0.29))
