from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from slm_core.training.heartbeat import FLOOR_SECONDS, HangWatch, Heartbeat, Phase, read_beat
from slm_core.training.supervise import DEFAULT_LIMITS

FLOORS = dict.fromkeys(FLOOR_SECONDS, 10.0) | {"load": 30.0, "eval": 100.0}


class Clock:
    """Beats and looks at times of its own."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        self.heart = Heartbeat(path)
        self.watch = HangWatch(path, floors=FLOORS, now=self.now)

    def beat(self, after: float, phase: Phase = "train") -> None:
        self.pass_time(after)
        self.heart.beat(1, phase)
        assert self.watch.silent_too_long(self.now) is None

    def pass_time(self, seconds: float, look_every: float = 0.5) -> float | None:
        """Return the silence at which the watch first called a hang within ``seconds``."""
        for _ in range(int(seconds / look_every)):
            self.now += look_every
            if (silence := self.watch.silent_too_long(self.now)) is not None:
                return silence
        return None


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(tmp_path / "heartbeat-0", monkeypatch)


def test_a_beat_is_read_back_and_replaced_in_place(tmp_path: Path) -> None:
    path = tmp_path / "heartbeat-0"
    assert read_beat(path) is None
    heart = Heartbeat(path)
    heart.beat(99_999_999, "publish")
    size = path.stat().st_size
    heart.beat(3, "train")
    beat = read_beat(path)
    assert beat is not None
    assert (beat.step, beat.phase, beat.pid) == (3, "train", os.getpid())
    assert abs(time.monotonic() - beat.t) < 5
    assert path.stat().st_size == size


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"t": 1}', '{"t": 1, "step": 2, "phase": "lunch", "pid": 3}']
)
def test_what_is_no_beat_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "h").write_text(text)
    assert read_beat(tmp_path / "h") is None


def test_silence_beyond_the_floor_is_a_hang(clock: Clock) -> None:
    clock.beat(1.0)
    assert clock.pass_time(20) == 10.5


def test_a_worker_that_never_spoke_has_the_time_to_load(clock: Clock) -> None:
    assert clock.watch.phase == "load"
    assert clock.pass_time(60) == 30.5


def test_slow_steps_teach_patience(clock: Clock) -> None:
    clock.beat(1.0)
    clock.beat(6.0)
    assert clock.watch.limit_seconds == 30.0
    assert clock.pass_time(60) == 30.5


def test_what_is_learned_belongs_to_the_phase_that_took_the_time(clock: Clock) -> None:
    clock.beat(1.0)
    clock.beat(1.0, "eval")
    clock.beat(50.0, "train")
    assert clock.watch.limit_seconds == 10.0, "the validation took long, not the step"
    clock.beat(1.0, "eval")
    assert clock.watch.limit_seconds == 250.0


def test_a_pause_of_everything_is_no_hang(clock: Clock) -> None:
    clock.beat(1.0)
    clock.now += 3600
    assert clock.watch.silent_too_long(clock.now) is None
    clock.beat(1.0)


def test_a_look_away_teaches_nothing(clock: Clock) -> None:
    clock.beat(1.0)
    clock.now += 3600
    clock.heart.beat(900, "train")
    assert clock.watch.silent_too_long(clock.now) is None
    assert clock.watch.limit_seconds == 10.0


def test_the_beat_of_an_earlier_attempt_is_not_a_sign_of_life(tmp_path: Path, clock: Clock) -> None:
    clock.heart.beat(7, "train")
    clock.now += 1
    watch = HangWatch(tmp_path / "heartbeat-0", floors=FLOORS, now=clock.now)
    assert watch.silent_too_long(clock.now) is None
    assert watch.last is None


def test_a_hung_step_is_noticed_and_ended_within_a_minute() -> None:
    ending = DEFAULT_LIMITS.stack_seconds + DEFAULT_LIMITS.hung_grace_seconds
    assert FLOOR_SECONDS["train"] + ending < 60
