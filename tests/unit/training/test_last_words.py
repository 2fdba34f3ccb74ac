from __future__ import annotations

from pathlib import Path

import pytest

from slm_core.errors import ConfigError, DatasetError, SlmError, TrainingDiverged
from slm_core.training.last_words import read_crash, read_error, read_tail, write_error


@pytest.mark.parametrize(
    "error",
    [
        DatasetError("3 rows are too long", longest=700),
        ConfigError("two problems", problems=("a", "b")),
        TrainingDiverged("at step 3", step=3, last_losses=[1.5, 2.5]),
    ],
)
def test_a_typed_error_crosses_the_process(tmp_path: Path, error: SlmError) -> None:
    path = tmp_path / "error-0.json"
    write_error(path, error)
    again = read_error(path)
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert read_crash(path) == ""


def test_any_other_error_crosses_as_words(tmp_path: Path) -> None:
    path = tmp_path / "error-1.json"
    write_error(path, RuntimeError("CUDA error: unknown error\nmore"))
    assert read_error(path) is None
    assert read_crash(path) == "RuntimeError: CUDA error: unknown error\nmore"


def test_numbers_that_json_cannot_say_cross_as_text(tmp_path: Path) -> None:
    write_error(tmp_path / "e", TrainingDiverged("x", loss=float("nan"), path=Path("/a")))
    again = read_error(tmp_path / "e")
    assert again is not None
    assert again.context["loss"] == "nan"


@pytest.mark.parametrize("text", [None, "", '{"type": "Data'])
def test_no_error_file_or_half_of_one_is_no_error(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "e").write_text(text)
    assert read_error(tmp_path / "e") is None
    assert read_crash(tmp_path / "e") == ""


def test_the_tail_is_that_of_this_attempt(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    assert read_tail(log, 0) == ""
    log.write_text("CUDA error of yesterday\n")
    begin = log.stat().st_size
    assert read_tail(log, begin) == ""
    with log.open("a") as file:
        file.write("\n".join(f"line {number}" for number in range(100)))
    tail = read_tail(log, begin)
    assert tail.endswith("line 99")
    assert "line 50" not in tail
    log.write_text("x" * 100_000 + "\nlast")
    assert read_tail(log, 0).endswith("x\nlast")
