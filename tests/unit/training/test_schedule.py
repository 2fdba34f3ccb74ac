from __future__ import annotations

from typing import Any

import pytest

from slm_core.training import TrainingSpec
from slm_core.training.schedule import Schedule, chunks, dropout_seed


def make_schedule(rows: int = 10, **changes: Any) -> Schedule:
    values = {"base_model": "nano", "micro_batch": 2, "accumulation": 2, "epochs": 3}
    return Schedule(rows, TrainingSpec(**(values | changes)))


def test_every_epoch_reads_every_row_once_in_another_order() -> None:
    schedule = make_schedule(rows=10)
    assert (schedule.steps_per_epoch, schedule.total_steps) == (3, 9)
    epochs = [
        [row for step in range(first, first + 3) for row in schedule.rows_of(step)]
        for first in (1, 4, 7)
    ]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [len(schedule.rows_of(step)) for step in (1, 2, 3)] == [4, 4, 2]


def test_the_order_depends_on_seed_and_not_on_how_a_step_is_split() -> None:
    orders = [make_schedule(**change).rows_of(5) for change in ({}, {"seed": 7})]
    assert orders[0] != orders[1]
    assert make_schedule(micro_batch=4, accumulation=1).rows_of(5) == orders[0]


def test_a_step_needs_no_history() -> None:
    assert make_schedule().rows_of(8) == make_schedule().rows_of(8)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [0.5, 1.0, 1.0, 0.875, 0.125]),
        ("cosine", [0.5, 1.0, 1.0, 0.9619, 0.0381]),
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_the_rate_rises_to_its_peak_and_falls(schedule: str, expected: list[float]) -> None:
    # 10 steps, 2 of them warm-up.
    course = make_schedule(
        rows=40, epochs=1, learning_rate=1.0, warmup_ratio=0.2, schedule=schedule
    )
    rates = [course.learning_rate(step) for step in (1, 2, 3, 4, 10)]
    assert rates == pytest.approx(expected, abs=1e-4)


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    assert make_schedule(warmup_ratio=0.0, learning_rate=0.3).learning_rate(1) == 0.3


def test_dropout_seeds_do_not_repeat() -> None:
    seeds = {dropout_seed(s, step, part) for s in (1, 2) for step in range(50) for part in range(8)}
    assert len(seeds) == 2 * 50 * 8
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_chunks_keep_order_and_the_rest() -> None:
    assert chunks([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]]
    assert chunks([], 2) == []
