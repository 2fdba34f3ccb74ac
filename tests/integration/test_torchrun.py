"""A run that torchrun takes over, as on several machines: here two of its agents on one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from slm_core.testing.training_runs import make_training_spec, write_training_files
from slm_core.training import TrainingSpec, train
from slm_core.training.run_folder import RunFolder

pytestmark = pytest.mark.integration


class Enough(Exception):
    """Stands for the person who stops the run on the first machine."""


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def torchrun(run_dir: Path, *options: str) -> subprocess.Popen[str]:
    module = [sys.executable, "-m", "torch.distributed.run", *options]
    return subprocess.Popen(
        [*module, "-m", "slm_core.training.worker", str(run_dir), "--multi-node"],
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_two_machines_go_on_with_a_run_that_was_begun_on_one(
    tiny_model: Path, tmp_path: Path
) -> None:
    dataset, run_dir = tmp_path / "dataset", tmp_path / "run"
    write_training_files(dataset)
    spec: TrainingSpec = make_training_spec(tiny_model, epochs=4)

    def stop_at_six(done: int, total: int, what: str) -> None:
        if done >= 6:
            raise Enough

    order = {"dataset_path": dataset, "dataset_id": "d", "run_dir": run_dir, "run_id": "r"}
    with pytest.raises(Enough):
        train(spec, **order, on_progress=stop_at_six)
    began = RunFolder(run_dir).read_job()
    assert began.plan.world_size == 1
    assert not (run_dir / "adapter").exists()
    meeting = f"--rdzv-endpoint=127.0.0.1:{free_port()}"
    options = ("--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=r", meeting)
    agents = [torchrun(run_dir, *options) for _ in range(2)]
    try:
        said = [agent.communicate(timeout=120)[0] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert [agent.returncode for agent in agents] == [0, 0], said
    assert sum("workers=2" in line for text in said for line in text.splitlines()) == 2
    assert sum("training begins" in text and "step=0 " not in text for text in said) == 2
    # The first machine's next call finds the run finished, and trains nothing.
    adapter = train(spec, **order)
    assert RunFolder(run_dir).read_job() == began
    assert adapter.summary["steps"] == 16
    # What was logged after the newest checkpoint was forgotten, then taken and logged again.
    lines = (run_dir / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 17))
