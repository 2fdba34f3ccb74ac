"""Attempts that end early with real worker processes, and what the trainer makes of them."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from slm_core.errors import DiskFull, GpuFault, RecoveryExhausted, RunBusy, WorkerDied
from slm_core.records import Adapter, Attempt, Fault, NextAction, Triage
from slm_core.testing.limits import limit_files_for_good
from slm_core.testing.training_runs import (
    make_training_spec,
    once_started,
    workers_of,
    write_training_files,
)
from slm_core.training import TrainingSpec, checkpoints, train
from slm_core.training.heartbeat import FLOOR_SECONDS
from slm_core.training.supervise import Limits

pytestmark = pytest.mark.integration


class ScriptedDoctor:
    """Finds what the script says: one fault per attempt, and one triage for each."""

    def __init__(self, *script: tuple[Fault, Triage]) -> None:
        self._script = list(script)
        self.watched: list[tuple[str, ...]] = []
        self.examined: list[tuple[str, tuple[str, ...]]] = []

    @contextmanager
    def watch(self, gpus: tuple[str, ...]) -> Iterator[None]:
        self.watched.append(gpus)
        yield

    def alarm(self) -> Fault | None:
        return self._script[0][0] if self._script else None

    def examine(self, fault: Fault, words: str, gpus: tuple[str, ...]) -> Triage:
        self.examined.append((fault.kind, gpus))
        return self._script.pop(0)[1]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_training_files(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def spec(tiny_model: Path) -> TrainingSpec:
    return make_training_spec(tiny_model)


def start(spec: TrainingSpec, dataset: Path, run_dir: Path, **more: Any) -> Adapter:
    return train(spec, dataset_path=dataset, dataset_id="d", run_dir=run_dir, run_id="r", **more)


def read_attempts(run_dir: Path) -> list[Attempt]:
    kept = json.loads((run_dir / "attempts.json").read_text())
    return [Attempt.model_validate(attempt) for attempt in kept]


def test_three_attempts_in_vain_are_the_end_with_the_whole_history(
    spec: TrainingSpec, dataset: Path, tmp_path: Path
) -> None:
    # Loading takes longer than this: every attempt counts as hung.
    floors = {**FLOOR_SECONDS, "load": 0.3}
    with pytest.raises(RecoveryExhausted, match="3 attempts in a row") as caught:
        start(spec, dataset, tmp_path, limits=Limits(hang_floor_seconds=floors))
    error = caught.value
    assert not error.retryable
    assert [told["fault"] for told in error.context["history"]] == ["hung"] * 3
    attempts = read_attempts(tmp_path)
    assert [attempt.number for attempt in attempts] == [1, 2, 3]
    assert [bool(attempt.reason) for attempt in attempts] == [False, True, True]
    for attempt in attempts:
        assert attempt.fault is not None
        assert attempt.fault.details["phase"] == "load"
        assert attempt.fault.detected_after_seconds is not None
        assert 0.3 < attempt.fault.detected_after_seconds < 2.0
    assert workers_of(os.getpid()) == {}


class Enough(Exception):
    """What a test wanted to see has happened."""


def test_a_worker_that_hangs_says_where(spec: TrainingSpec, dataset: Path, tmp_path: Path) -> None:
    def on_attempt(attempt: Attempt) -> None:
        if attempt.fault is not None:
            raise Enough
        # Checked by the trainer, but opened by the worker: it waits for a writer for ever.
        (files / "val.jsonl").unlink()
        os.mkfifo(files / "val.jsonl")

    files = write_training_files(tmp_path / "files")
    run_dir = tmp_path / "run"
    floors = {**FLOOR_SECONDS, "load": 3.0}
    limits = Limits(hang_floor_seconds=floors, hung_grace_seconds=0.2)
    with pytest.raises(Enough):
        start(spec, files, run_dir, on_attempt=on_attempt, limits=limits)
    (attempt,) = read_attempts(run_dir)
    assert attempt.fault is not None
    assert attempt.fault.kind == "hung"
    assert "most recent call first" in (run_dir / "worker.log").read_text()


def test_a_worker_that_cannot_be_killed_does_not_hang_the_trainer(
    spec: TrainingSpec, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(
        hang_floor_seconds={**FLOOR_SECONDS, "load": 0.3},
        hung_grace_seconds=0.2,
        stack_seconds=0.1,
        kill_seconds=0.3,
    )
    began = time.monotonic()
    with monkeypatch.context() as patched:
        # As for a process that waits inside a broken driver: signals have no effect.
        patched.setattr(os, "killpg", lambda pid, number: None)
        with pytest.raises(GpuFault, match="cannot be killed") as caught:
            start(spec, dataset, tmp_path, limits=limits)
        (worker,) = workers_of(os.getpid()).values()
    assert time.monotonic() - began < 10
    (attempt,) = read_attempts(tmp_path)
    assert attempt.fault is not None
    assert attempt.fault.kind == "driver_hung"
    assert attempt.fault.details["unkillable_pids"] == [worker.pid]
    assert "reboot" in caught.value.message
    with pytest.raises(RunBusy):
        start(spec, dataset, tmp_path)
    worker.kill()
    worker.wait()


def test_the_death_of_one_rank_ends_the_others(
    spec: TrainingSpec, dataset: Path, tmp_path: Path
) -> None:
    two = spec.model_copy(update={"world_size": 2, "device": "auto"})
    doctor = ScriptedDoctor()
    killed: list[float] = []
    noticed: list[float] = []

    def kill(worker: Any) -> None:
        killed.append(time.monotonic())
        worker.kill()

    def on_attempt(attempt: Attempt) -> None:
        if attempt.fault is None:
            once_started(os.getpid(), 1, kill)
        else:
            noticed.append(time.monotonic())
            assert workers_of(os.getpid()) == {}

    with pytest.raises(RecoveryExhausted) as caught:
        start(two, dataset, tmp_path, on_attempt=on_attempt, doctor=doctor)
    assert caught.value.context["kind"] == "worker_killed"
    faults = [attempt.fault for attempt in read_attempts(tmp_path)]
    assert [(fault.rank, fault.exit_code) for fault in faults if fault] == [(1, -9)] * 3
    assert max(b - a for a, b in zip(killed, noticed, strict=True)) < 2.0
    assert doctor.examined == [], "no GPU was in use"


def test_a_full_disk_leaves_a_sound_checkpoint_and_is_not_tried_again(
    spec: TrainingSpec, dataset: Path, tmp_path: Path
) -> None:
    def fill_up(done: int, total: int, what: str) -> None:
        if done >= 6:
            for worker in workers_of(os.getpid()).values():
                limit_files_for_good(worker.pid, 10_000)

    with pytest.raises(DiskFull, match=r"(?i)file too large") as caught:
        start(spec, dataset, tmp_path, on_progress=fill_up)
    assert caught.value.context["free_bytes"] > 0
    assert not caught.value.retryable
    found = checkpoints.newest(tmp_path / "checkpoints")
    assert found is not None
    assert not list((tmp_path / "checkpoints").glob("draft-*"))
    (attempt,) = read_attempts(tmp_path)
    assert attempt.fault is not None
    assert attempt.fault.kind == "disk_full"
    assert found.step <= attempt.last_step


def test_somebody_who_stops_a_worker_is_obeyed(
    spec: TrainingSpec, dataset: Path, tmp_path: Path
) -> None:
    def stop(done: int, total: int, what: str) -> None:
        if done == 6:
            workers_of(os.getpid())[0].send_signal(signal.SIGTERM)

    with pytest.raises(WorkerDied, match="saved a checkpoint") as caught:
        start(spec, dataset, tmp_path, on_progress=stop)
    assert caught.value.retryable
    (attempt,) = read_attempts(tmp_path)
    found = checkpoints.newest(tmp_path / "checkpoints")
    assert found is not None
    assert 6 <= attempt.last_step <= found.step


def make_alarm(kind: str, action: NextAction, **triage: Any) -> tuple[Fault, Triage]:
    fault = Fault(kind=kind, message=f"The kernel log tells of {kind}.")
    return fault, Triage(action=action, reason="So it was found.", **triage)


def test_an_alarm_ends_the_attempt_and_the_triage_is_obeyed(
    spec: TrainingSpec, dataset: Path, tmp_path: Path
) -> None:
    any_device = spec.model_copy(update={"device": "auto"})
    doctor = ScriptedDoctor(
        make_alarm("gpu_lost", NextAction.DROP_GPU, sick=("GPU-a",), survivors=("GPU-b",)),
        make_alarm("cuda_error", NextAction.RESUME),
        make_alarm("driver_hung", NextAction.REBOOT, commands=("sudo reboot",)),
    )
    began = time.monotonic()
    with pytest.raises(GpuFault, match="So it was found") as caught:
        start(any_device, dataset, tmp_path, gpus=["GPU-a", "GPU-b"], doctor=doctor)
    assert time.monotonic() - began < 20
    assert caught.value.context["action"] == "reboot"
    assert caught.value.context["commands"] == ("sudo reboot",)
    assert doctor.watched == [("GPU-a", "GPU-b"), ("GPU-b",), ("GPU-b",)]
    assert [kind for kind, _ in doctor.examined] == ["gpu_lost", "cuda_error", "driver_hung"]
    attempts = read_attempts(tmp_path)
    faults = [attempt.fault for attempt in attempts if attempt.fault]
    assert [fault.details["triage"]["action"] for fault in faults] == [
        "drop_gpu",
        "resume",
        "reboot",
    ]
    assert attempts[1].reason.startswith("without GPU-a")
    assert workers_of(os.getpid()) == {}


def test_the_ladder_is_climbed_over_attempts_and_calls(
    spec: TrainingSpec, dataset: Path, tmp_path: Path
) -> None:
    out_of_memory = make_alarm("out_of_gpu_memory", NextAction.RESUME)
    changes = {"device": "auto", "max_length": 1600, "shorter_lengths": (1536,)}
    any_device = spec.model_copy(update=changes)
    with pytest.raises(RecoveryExhausted, match="every rung") as caught:
        start(any_device, dataset, tmp_path, doctor=ScriptedDoctor(out_of_memory))
    attempts = read_attempts(tmp_path)
    rungs = ["expandable_segments", "base model in nf4", "max_length 1600 -> 1536"]
    assert [attempt.plan["changes"] for attempt in attempts] == [rungs[:n] for n in range(4)]
    assert [told["reason"] for told in caught.value.context["history"]] == [
        "",
        *(f"out of GPU memory: {rung}" for rung in rungs),
    ]
    assert "PYTORCH_ALLOC_CONF" not in str(attempts[0].plan)

    # Asked again, it does not begin with the plan that is known to be too large.
    with pytest.raises(RecoveryExhausted):
        start(any_device, dataset, tmp_path, doctor=ScriptedDoctor(out_of_memory))
    assert [attempt.plan["changes"] for attempt in read_attempts(tmp_path)[4:]] == [rungs]
