"""How fast, and how long still: what a line of progress says."""

from __future__ import annotations

from tasks._progress import Pace


def words(pace: Pace, total: int, what: str = "") -> str:
    return pace.words(total, what).replace("\u202f", " ")


def test_the_rate_and_the_time_left_are_those_of_the_last_minute() -> None:
    pace = Pace()
    pace.note(0, 0)
    pace.note(100, 1)  # slow at first
    pace.note(170, 141)
    assert words(pace, 1001, "loss 0.4") == "141 of 1,001, 2.0/s, about 7 min left, loss 0.4"


def test_before_there_is_a_rate_nothing_is_guessed() -> None:
    pace = Pace()
    assert words(pace, 10) == "0 of 10"
    pace.note(0, 40)  # a resumed training begins in the middle
    assert words(pace, 100) == "40 of 100"
    pace.note(5, 40)
    assert pace.per_second() is None


def test_slow_work_is_told_by_the_minute() -> None:
    pace = Pace()
    pace.note(0, 1)
    pace.note(120, 2)
    assert words(pace, 31) == "2 of 31, 0.5/min, about 58 min left"


def test_what_is_done_has_no_time_left_and_steps_taken_again_count_anew() -> None:
    pace = Pace()
    pace.note(0, 0)
    pace.note(1, 10)
    assert words(pace, 10, "") == "10 of 10"
    pace.note(2, 4)
    assert words(pace, 10) == "4 of 10"
