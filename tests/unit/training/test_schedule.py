from __future__ import annotations

from typing import Any

import pytest

from slm_core.training import TrainingSpec
from slm_core.training.schedule import Schedule, chunks, dropout_seed


def make_schedule(rows: int = 10, **changes: Any) -> Schedule:
    values = {"base_model": "nano", "micro_batch": 2, "accumulation": 2, "epochs": 3}
    return Schedule([7] * rows, TrainingSpec(**(values | changes)))


def test_every_epoch_reads_every_row_once_in_another_order() -> None:
    schedule = make_schedule(rows=10)
    assert schedule.total_steps == 9
    assert [step for step in range(1, 10) if schedule.ends_epoch(step)] == [3, 6, 9]
    assert [schedule.epoch(step) for step in (1, 3, 9)] == [pytest.approx(1 / 3), 1.0, 3.0]
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
    seeds = {dropout_seed(s, step, row) for s in (1, 2) for step in range(50) for row in range(8)}
    assert len(seeds) == 2 * 50 * 8
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_chunks_keep_order_and_the_rest() -> None:
    assert chunks([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]]
    assert chunks([], 2) == []


def test_a_place_in_the_data_survives_a_change_of_step_size() -> None:
    long, short = make_schedule(rows=10), make_schedule(rows=10, accumulation=1)
    # 10 rows: steps of 4, 4, 2 before, of 2 after.
    assert [short.step_at(long.position(step)) for step in range(10)] == [
        0, 2, 4, 5, 7, 9, 10, 12, 14, 15,
    ]  # fmt: skip
    assert long.step_at(short.position(3)) == 1
    assert long.step_at(short.position(15)) == 9
