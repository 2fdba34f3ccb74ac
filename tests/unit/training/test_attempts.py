from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from slm_core.errors import DiskFull
from slm_core.records import Attempt, Fault
from slm_core.testing.limits import largest_file
from slm_core.testing.training_runs import make_job
from slm_core.training import TrainingSpec
from slm_core.training.attempts import AttemptLog
from slm_core.training.plan import first_plan
from slm_core.training.run_folder import RunFolder

SPEC = TrainingSpec(base_model="nano")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def begin(log: AttemptLog, reason: str = "", **plan: Any) -> None:
    job = make_job(SPEC, attempt=log.next_number, plan=first_plan(SPEC).model_copy(update=plan))
    log.begin(job, 4, reason)


def recover(run: RunFolder, attempt: int, step: int, message: str) -> None:
    line = {"attempt": attempt, "step": step, "rung": "split", "message": message, "details": {}}
    with run.recoveries.open("a") as file:
        file.write(json.dumps(line) + "\n")


def test_attempts_are_told_and_kept_with_plan_and_reason(run: RunFolder) -> None:
    told: list[Attempt] = []
    log = AttemptLog(run, told.append)
    assert log.last_plan is None
    begin(log, quantization="nf4")
    log.end(9, Fault(kind="hung", message="x"))
    begin(log, "resumed after hung")
    assert [(a.number, a.first_step, a.last_step, a.reason) for a in run.read_attempts()] == [
        (1, 4, 9, ""),
        (2, 4, 4, "resumed after hung"),
    ]
    assert [attempt.number for attempt in told] == [1, 1, 2]
    assert run.read_attempts()[0].plan["quantization"] == "nf4"


def test_a_later_call_knows_what_came_before(run: RunFolder) -> None:
    log = AttemptLog(run, None)
    begin(log, expandable_segments=True, changes=("expandable_segments",), gpus=("GPU-a",))
    recover(run, 1, 5, "pass split in two")
    told: list[Attempt] = []
    later = AttemptLog(run, told.append)
    assert [attempt.number for attempt in later.earlier] == [1]
    assert later.present == []
    (fault,) = [attempt.fault for attempt in told]
    assert fault is not None
    assert fault.kind == "trainer_killed"
    assert told[0].recoveries == ("step 5: pass split in two",)
    assert later.last_plan == first_plan(SPEC).model_copy(
        update={
            "expandable_segments": True,
            "changes": ("expandable_segments",),
            "gpus": ("GPU-a",),
        }
    )
    begin(later)
    assert [attempt.number for attempt in later.present] == [2]


def test_what_a_worker_changed_is_told_as_it_happens(run: RunFolder) -> None:
    told: list[Attempt] = []
    log = AttemptLog(run, told.append)
    begin(log)
    recover(run, 1, 5, "pass split in two")
    log.look()
    log.look()
    with run.recoveries.open("a") as file:
        file.write('{"attempt": 1, "ste')
    log.end(6, Fault(kind="worker_killed", message="x"))
    begin(log)
    with run.recoveries.open("a") as file:
        file.write("\n")
    recover(run, 2, 7, "gradient checkpointing on")
    log.end(9, None)
    assert [len(attempt.recoveries) for attempt in told] == [0, 1, 1, 0, 1]
    kept = [attempt.recoveries for attempt in run.read_attempts()]
    assert kept == [("step 5: pass split in two",), ("step 7: gradient checkpointing on",)]


def test_a_full_disk_does_not_hide_how_an_attempt_ended(run: RunFolder) -> None:
    told: list[Attempt] = []
    log = AttemptLog(run, told.append)
    begin(log)
    with largest_file(100):
        log.end(9, Fault(kind="disk_full", message="x"))
        with pytest.raises(DiskFull):
            begin(log)
    assert told[1].fault is not None
    # What is on disk is whole, though old.
    assert [attempt.fault for attempt in run.read_attempts()] == [None]


def test_the_plan_of_another_version_is_no_plan(run: RunFolder) -> None:
    log = AttemptLog(run, None)
    begin(log)
    (attempt,) = run.read_attempts()
    run.write_attempts([attempt.model_copy(update={"plan": {"micro_batch": 4}})])
    assert AttemptLog(run, None).last_plan is None
