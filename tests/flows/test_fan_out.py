"""An evaluation in shards on a real Dask cluster, one of whose workers is killed."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect import flow

from slm_core.evaluation import read_details
from slm_core.presets import EvalSpec
from slm_core.presets import TestSetSpec as CasesSpec
from slm_core.records import CaseResult, Evaluation
from tasks._wiring import traced
from tasks.dataset import make_test_set
from tasks.evaluation import evaluate_arms

pytestmark = pytest.mark.integration


@flow
def score(spec: EvalSpec, folder: Path) -> Evaluation:
    with traced("eval", folder.name) as trace:
        return evaluate_arms(spec, ("student",), make_test_set(spec.test_set), None, folder, trace)


class Killer(threading.Thread):
    """Kills the first process below this one that writes answers of a shard."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self._folder = folder
        self.killed: list[int] = []
        self.stopped = threading.Event()

    def run(self) -> None:
        while not self.stopped.is_set() and not self.killed:
            for worker in psutil.Process().children(recursive=True):
                try:
                    files = [file.path for file in worker.open_files()]
                except psutil.Error:
                    continue
                if any(str(self._folder) in file and "outputs-" in file for file in files):
                    worker.send_signal(signal.SIGKILL)
                    self.killed.append(worker.pid)
                    break
            time.sleep(0.005)


def rows(evaluation: Evaluation) -> list[CaseResult]:
    found = read_details(Path(evaluation.details_path))
    # The time that an answer took, and its price by the hour, are not the evaluation's.
    return [row.model_copy(update={"seconds": 0.0, "cost_nanousd": None}) for row in found]


def test_shards_with_a_killed_worker_score_as_one_process_does(
    service: Any, tmp_path: Path
) -> None:
    evaluation = service.plan().eval.evaluation.model_copy(
        update={"batch_size": 1, "max_tokens": 48}
    )
    spec = service.eval_plan(
        evaluation=evaluation, test_set=CasesSpec(rows_per_track=16, seed=7), arms=("student",)
    )
    alone = score(spec, tmp_path / "alone")
    killer = Killer(tmp_path / "shared" / "shards")
    killer.start()
    shared = score(spec.model_copy(update={"shards": 2}), tmp_path / "shared")
    killer.stopped.set()
    killer.join()
    assert len(killer.killed) == 1
    assert shared.id == alone.id
    assert rows(shared) == rows(alone)
    answers = [
        file.read_text().count("\n") for file in sorted((tmp_path / "shared").glob("shards/*/*"))
    ]
    assert answers == [16, 16]  # each question was answered once, the kill notwithstanding
