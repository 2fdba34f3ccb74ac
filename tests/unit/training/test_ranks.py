from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from slm_core.training import TrainingSpec
from slm_core.training.heartbeat import HangWatch
from slm_core.training.plan import first_plan
from slm_core.training.ranks import Rank, environment

PARENT_AND_CHILD = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(float(sys.argv[1]))
"""


def make_rank(folder: Path, seconds: float) -> tuple[Rank, int]:
    """Return a process that lives so long, and the id of one that it has started."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT_AND_CHILD, str(seconds)],
        stdout=subprocess.PIPE,
        process_group=0,
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.stdout.close()
    return Rank(0, process, HangWatch(folder / "heartbeat-0")), child


def wait_for_end(rank: Rank) -> int:
    deadline = time.monotonic() + 10
    while (code := rank.exit_code()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return code


def is_gone(pid: int) -> bool:
    """Whether the process has ended; a zombie waits for init, which a container may lack."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


def test_nothing_that_a_worker_started_outlives_it(tmp_path: Path) -> None:
    rank, child = make_rank(tmp_path, 0.0)
    assert wait_for_end(rank) == 0
    assert is_gone(child)
    assert rank.exit_code() == 0


def test_a_signal_reaches_the_whole_group(tmp_path: Path) -> None:
    rank, child = make_rank(tmp_path, 60.0)
    assert rank.exit_code() is None
    rank.send(signal.SIGTERM)
    assert wait_for_end(rank) == -signal.SIGTERM
    assert is_gone(child)
    rank.send(signal.SIGKILL)  # its id may be somebody else's by now: nothing is sent


def test_the_plan_is_told_through_the_environment() -> None:
    plan = first_plan(TrainingSpec(base_model="nano"))
    assert environment(plan) == ["OMP_WAIT_POLICY=passive"]
    plan = plan.model_copy(update={"gpus": ("GPU-a", "GPU-b"), "expandable_segments": True})
    assert environment(plan) == [
        "OMP_WAIT_POLICY=passive",
        "CUDA_VISIBLE_DEVICES=GPU-a,GPU-b",
        "PYTORCH_ALLOC_CONF=expandable_segments:True",
    ]
