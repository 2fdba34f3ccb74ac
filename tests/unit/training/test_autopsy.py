from __future__ import annotations

from pathlib import Path

import pytest

from slm_core.errors import DatasetError, DiskFull, OutOfGpuMemory
from slm_core.records import Fault
from slm_core.training.autopsy import Scene, Verdict, find_cause
from slm_core.training.faults import ExitCode
from slm_core.training.last_words import write_error
from slm_core.training.run_folder import RunFolder
from slm_core.training.supervise import Ended


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def judge(run: RunFolder, ended: Ended) -> Verdict:
    verdict = find_cause(run, Scene(0, None), ended, last_step=12)
    assert verdict is not None
    assert verdict.fault.step == 12
    return verdict


def test_all_ranks_done_is_no_fault(run: RunFolder) -> None:
    assert find_cause(run, Scene.now(run), Ended({0: 0, 1: 0}, 60), 60) is None


def test_the_typed_error_of_any_rank_is_found(run: RunFolder) -> None:
    write_error(run.error(0), RuntimeError("Connection closed by peer"))
    write_error(run.error(1), OutOfGpuMemory("too large", used_bytes=7))
    ended = Ended({0: 1, 1: ExitCode.REFUSED}, 12, silent_seconds=0.4)
    fault, refusal, _ = judge(run, ended)
    assert (fault.kind, fault.rank) == ("out_of_gpu_memory", 1)
    assert fault.details == {"used_bytes": 7}
    assert fault.detected_after_seconds == 0.4
    assert isinstance(refusal, OutOfGpuMemory)


def test_what_an_earlier_attempt_logged_is_not_this_ones_fault(run: RunFolder) -> None:
    run.log.write_text("CUDA error: unknown error\n")
    before = Scene.now(run)
    with run.log.open("a") as log:
        log.write("Aborted\n")
    verdict = find_cause(run, before, Ended({0: -6}, 12), 12)
    assert verdict is not None
    assert verdict.fault.kind == "worker_killed"
    assert verdict.words == "Aborted"
    assert judge(run, Ended({0: -6}, 12)).fault.kind == "cuda_error"


def test_a_full_disk_without_room_to_say_so(run: RunFolder) -> None:
    verdict = judge(run, Ended({0: ExitCode.DISK_FULL}, 12))
    assert verdict.fault.kind == "disk_full"
    assert isinstance(verdict.refusal, DiskFull)
    assert verdict.refusal.context["free_bytes"] > 0


def test_an_error_file_is_believed_only_with_its_exit_code(run: RunFolder) -> None:
    write_error(run.error(0), DatasetError("x"))
    verdict = judge(run, Ended({0: -9}, 12))
    assert (verdict.fault.kind, verdict.refusal) == ("worker_killed", None)


def test_a_hang_and_an_alarm_are_named_by_the_parent(run: RunFolder) -> None:
    hung = Ended({}, 12, hung_rank=1, phase="eval", silent_seconds=61.0)
    fault = judge(run, hung).fault
    assert (fault.kind, fault.rank, fault.detected_after_seconds) == ("hung", 1, 61.0)
    assert "61.0 s in phase eval after step 12" in fault.message
    alarm = Ended({}, 12, alarm=Fault(kind="gpu_lost", message="Xid 79"), silent_seconds=2.0)
    fault = judge(run, alarm).fault
    assert (fault.kind, fault.message) == ("gpu_lost", "Xid 79")


def test_a_worker_that_outlives_sigkill_hangs_in_the_driver(run: RunFolder) -> None:
    ended = Ended({}, 12, hung_rank=0, phase="train", silent_seconds=61.0, unkillable=(77,))
    fault = judge(run, ended).fault
    assert (fault.kind, fault.details["unkillable_pids"]) == ("driver_hung", [77])
    assert fault.message.endswith("It cannot be killed.")


def test_only_rank_0_saves_a_checkpoint(run: RunFolder) -> None:
    stopped = ExitCode.INTERRUPTED
    saved = judge(run, Ended({1: stopped, 0: stopped}, 12)).fault
    assert (saved.kind, "saved a checkpoint" in saved.message) == ("interrupted", True)
    unsaved = judge(run, Ended({1: stopped}, 12)).fault
    assert (unsaved.kind, "saved a checkpoint" in unsaved.message) == ("interrupted", False)
