"""Workers that share each step: real processes that meet at a file, over gloo on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from slm_core.testing.training_runs import make_training_spec, write_training_files
from slm_core.training import TrainingSpec, train

pytestmark = pytest.mark.integration

RANK = """
import json, sys
from pathlib import Path
import torch
from slm_core.errors import OutOfGpuMemory
from slm_core.prompting.prefix import get_prefix
from slm_core.prompting.render import Renderer
from slm_core.testing.records import make_example
from slm_core.training import TrainingSpec
from slm_core.training.engine.loop import Loop
from slm_core.training.engine.ranks import join
from slm_core.training.engine.student import load_student
from slm_core.training.plan import first_plan
from slm_core.training.rows import Row
from transformers import AutoTokenizer

order = json.loads(sys.argv[1])
rank = int(sys.argv[2])
torch.set_num_threads(1)
model = Path(order["model"])
renderer = Renderer(AutoTokenizer.from_pretrained(model), get_prefix("compact"))
examples = [make_example(10**number, "toolcall") for number in range(8)]
rows = [Row(e.id, *renderer.example(e.prompt, e.tools, e.completion)) for e in examples]
spec = TrainingSpec(base_model=str(model), **order["spec"])
cpu = torch.device("cpu")
ranks = join(cpu, rank, spec.world_size, Path(order["meeting_point"]))
student = load_student(model, spec)
if spec.shard:
    student.shard()
loop = Loop(student, rows, spec, first_plan(spec), ranks=ranks)
told = []
loop.passes.on_recovery = lambda step, rung, message, facts: told.append(rung)

def run_out(module, inputs, output):
    if student.model.training and output.shape[1] > order["fail_above"]:
        raise torch.OutOfMemoryError("CUDA out of memory.")

if order["fail_rank"] == rank:
    student.layers[1].register_forward_hook(run_out)
ended = "done"
losses = []
try:
    losses = [result.loss for result in loop.steps()]
    losses.append(loop.validation_loss(rows))
except OutOfGpuMemory as error:
    ended = error.message
weights = [p.detach().double().sum().item() for p in student.trainable.values()]
counted = loop.counters
each = counted.gpu_seconds / counted.seconds if counted.seconds else 0
print("RESULT" + json.dumps([ended, losses, weights, told, counted.step, each]))
ranks.wait()
ranks.leave()
"""

SPEC: dict[str, Any] = {
    "max_length": 512,
    "lora_r": 4,
    "lora_dropout": 0.2,
    "micro_batch": 4,
    "accumulation": 2,
    "epochs": 3,
    "learning_rate": 1e-2,
    "device": "cpu",
}


def run_ranks(
    model: Path, folder: Path, *, fail_rank: int = -1, fail_above: int = 0, **spec: Any
) -> list[tuple[str, list[float], list[float], list[str], int, float]]:
    """Run the loop in as many processes as the spec says; return what each one saw."""
    order = {
        "model": str(model),
        "spec": SPEC | spec,
        "meeting_point": str(folder / "meet"),
        "fail_rank": fail_rank,
        "fail_above": fail_above,
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", RANK, json.dumps(order), str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(spec.get("world_size", 1))
    ]
    found = []
    for process in processes:
        try:
            out, err = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            for other in processes:
                other.kill()
            raise
        assert process.returncode == 0, err[-3000:]
        said = next(line for line in out.splitlines() if line.startswith("RESULT"))
        found.append(tuple(json.loads(said.removeprefix("RESULT"))))
    return found


@pytest.fixture(scope="module")
def alone(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run_ranks(tiny_model, tmp_path_factory.mktemp("alone"))[0]


@pytest.mark.parametrize("change", [{}, {"packing": False}, {"shard": True}], ids=str)
def test_two_workers_learn_what_one_learns(
    tiny_model: Path, tmp_path: Path, alone: Any, change: dict[str, Any]
) -> None:
    """With dropout on: its masks do not depend on who reads a row."""
    one, other = run_ranks(tiny_model, tmp_path, world_size=2, **change)
    assert one[2] == other[2]  # the same weights on both, to the bit
    assert (alone[5], one[5]) == (pytest.approx(1), pytest.approx(2))
    assert one[1] == pytest.approx(alone[1], rel=1e-4)


def test_a_worker_that_runs_out_of_memory_repeats_its_pass_alone(
    tiny_model: Path, tmp_path: Path, alone: Any
) -> None:
    one, other = run_ranks(tiny_model, tmp_path, world_size=2, fail_rank=1, fail_above=400)
    assert (one[3], other[3][0]) == ([], "split")
    assert one[1] == pytest.approx(alone[1], rel=1e-4)


def test_when_one_worker_gives_up_all_stop_at_the_same_step(
    tiny_model: Path, tmp_path: Path
) -> None:
    one, other = run_ranks(tiny_model, tmp_path, world_size=2, fail_rank=1, fail_above=1)
    assert "Another worker" in one[0]
    assert "single row" in other[0]
    assert one[4] == other[4] == 0


def test_a_run_of_two_workers_is_trained_and_published(tiny_model: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    write_training_files(dataset)
    spec: TrainingSpec = make_training_spec(tiny_model, epochs=2).model_copy(
        update={"world_size": 2}
    )
    adapter = train(
        spec, dataset_path=dataset, dataset_id="d", run_dir=tmp_path / "run", run_id="r"
    )
    assert adapter.summary["steps"] > 0
    assert (tmp_path / "run/adapter/adapter_model.safetensors").is_file()
