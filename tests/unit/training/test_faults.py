from __future__ import annotations

import signal
from pathlib import Path

import pytest

from slm_core.errors import ConfigError, DatasetError, SlmError, TrainingDiverged, WorkerDied
from slm_core.training.faults import ExitCode, error_of, fault_of, read_error, write_error


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (-signal.SIGKILL, "worker_killed", "SIGKILL"),
        (-signal.SIGSEGV, "worker_killed", "SIGSEGV"),
        (-99, "worker_killed", "signal 99"),
        (ExitCode.INTERRUPTED, "interrupted", "saved a checkpoint"),
        (1, "worker_crashed", "crashed"),
        (ExitCode.REFUSED, "refused", "crashed"),
    ],
)
def test_every_silent_end_is_a_retryable_death(
    tmp_path: Path, code: int, kind: str, words: str
) -> None:
    log = tmp_path / "worker.log"
    log.write_text("\n".join(f"line {number}" for number in range(100)))
    error = error_of(code, None, 12, log)
    assert isinstance(error, WorkerDied)
    assert error.retryable
    assert words in error.message
    assert error.context["exit_code"] == code
    assert error.context["last_step"] == 12
    assert error.context["log_tail"].endswith("line 99")
    assert "line 50" not in error.context["log_tail"]
    fault = fault_of(error, 12, code)
    assert (fault.kind, fault.step, fault.exit_code) == (kind, 12, code)


@pytest.mark.parametrize(
    "error",
    [
        DatasetError("3 rows are too long", longest=700),
        ConfigError("two problems", problems=("a", "b")),
        TrainingDiverged("at step 3", step=3, last_losses=[1.5, 2.5]),
    ],
)
def test_a_typed_error_crosses_the_process(tmp_path: Path, error: SlmError) -> None:
    path = tmp_path / "error.json"
    write_error(path, error)
    again = read_error(path)
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert error_of(ExitCode.REFUSED, again, 0, tmp_path / "log") is again


def test_numbers_that_json_cannot_say_cross_as_text(tmp_path: Path) -> None:
    write_error(tmp_path / "e", TrainingDiverged("x", loss=float("nan"), path=Path("/a")))
    again = read_error(tmp_path / "e")
    assert again is not None
    assert again.context["loss"] == "nan"


def test_a_divergence_is_named() -> None:
    assert fault_of(TrainingDiverged("x"), 3, ExitCode.REFUSED).kind == "diverged"


def test_no_error_file_is_no_error(tmp_path: Path) -> None:
    assert read_error(tmp_path / "absent") is None
