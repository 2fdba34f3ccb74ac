from __future__ import annotations

from pathlib import Path

import pytest

from slm_core.training.events import (
    EventFile,
    StepEvent,
    forget_after,
    line,
    read_events,
    read_last,
)


def make_event(step: int) -> StepEvent:
    return StepEvent(
        step=step,
        epoch=step / 4,
        loss=1 / step,
        grad_norm=0.5,
        learning_rate=1e-3,
        tokens_per_second=6000.0,
        total_steps=8,
        eta_seconds=8.0 - step,
    )


def test_a_half_written_line_is_read_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    file = EventFile(path)
    assert file.read_new() == []
    whole = line(make_event(2))
    path.write_bytes(line(make_event(1)) + whole[:20])
    assert [event.step for event in file.read_new()] == [1]
    path.write_bytes(path.read_bytes() + whole[20:])
    assert file.read_new() == [make_event(2)]
    assert file.read_new() == []


def test_steps_that_will_be_taken_again_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"".join(line(make_event(step)) for step in (1, 2, 3, 4)) + b'{"step": 5')
    forget_after(path, 2)
    assert [event.step for event in read_events(path)] == [1, 2]
    assert path.read_bytes().endswith(b"\n")


def test_garbage_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(line(make_event(1)) + b"\0\0\0\n" + line(make_event(2)))
    assert [event.step for event in read_events(path)] == [1, 2]


@pytest.mark.parametrize(
    "end", [b"", b'{"step": 4', b'{"step": 4\n', b"\0" * 5000 + b"\n", b"\n\n"]
)
def test_the_newest_event_is_found_before_a_torn_end(tmp_path: Path, end: bytes) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"".join(line(make_event(step)) for step in range(1, 4)) + end)
    assert read_last(path) == make_event(3)


def test_a_file_without_an_event_has_no_newest(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    assert read_last(path) is None
    path.write_bytes(b'\0\n{"step": 1')
    assert read_last(path) is None


def test_the_point_leaves_progress_out() -> None:
    assert set(make_event(1).point().model_dump()) == {
        "step",
        "epoch",
        "loss",
        "grad_norm",
        "learning_rate",
        "tokens_per_second",
        "val_loss",
    }
