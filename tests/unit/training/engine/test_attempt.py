"""One worker's attempt, run in this process: what it refuses, says and leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch

from slm_core.errors import SpecChanged
from slm_core.testing.training_runs import make_job, make_training_spec, write_training_files
from slm_core.training import checkpoints
from slm_core.training.engine.attempt import run_job
from slm_core.training.faults import kind_of
from slm_core.training.heartbeat import read_beat
from slm_core.training.plan import first_plan
from slm_core.training.run_folder import RunFolder
from slm_core.training.stop import StopRequest


@pytest.fixture
def stop() -> Iterator[StopRequest]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    threads = torch.get_num_threads()
    yield StopRequest()
    torch.set_num_threads(threads)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_training_files(tmp_path_factory.mktemp("dataset"))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    (tmp_path / "run").mkdir()
    return RunFolder(tmp_path / "run")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_run_that_was_given_gpus_never_goes_on_without(
    tiny_model: Path, dataset: Path, run: RunFolder, stop: StopRequest, device: str
) -> None:
    spec = make_training_spec(tiny_model, device=device)
    job = make_job(spec, dataset, plan=first_plan(spec, ("GPU-a",)))
    with pytest.raises(RuntimeError) as caught:
        run_job(run, job, stop)
    assert kind_of(str(caught.value)) == "gpu_lost"


def test_the_best_weights_are_saved_as_a_save(
    tiny_model: Path,
    dataset: Path,
    run: RunFolder,
    stop: StopRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A slow disk has the time of a save, not that of a validation."""
    phases: list[str] = []
    sync = os.fsync

    def fsync(file: int) -> None:
        beat = read_beat(run.heartbeat(0))
        if "draft-best-" in os.readlink(f"/proc/self/fd/{file}") and beat is not None:
            phases.append(beat.phase)
        sync(file)

    monkeypatch.setattr(os, "fsync", fsync)
    spec = make_training_spec(tiny_model, epochs=2, save_every_steps=99)
    assert run_job(run, make_job(spec, dataset), stop)
    assert set(phases) == {"save"}


@pytest.mark.parametrize(
    ("file", "change"), [("chat_template.jinja", "{# changed #}"), ("tokenizer.json", " ")]
)
def test_other_prompts_than_the_run_began_with_are_refused(
    tiny_model: Path,
    dataset: Path,
    run: RunFolder,
    stop: StopRequest,
    tmp_path: Path,
    file: str,
    change: str,
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    spec = make_training_spec(model, epochs=2, restore_best=False)
    assert run_job(run, make_job(spec, dataset), stop)
    half = run.checkpoints / "step-00000004"
    resumed = make_job(spec, dataset, resume_from=str(half))
    shutil.rmtree(run.adapter)

    with (model / file).open("a") as changed:
        changed.write(change)
    with pytest.raises(SpecChanged, match="chat template"):
        run_job(run, resumed, stop)

    # One that an older version wrote does not say, and is taken as it is.
    state = json.loads((half / checkpoints.STATE).read_text())
    del state["prompts"], state["counters"]["gpu_seconds"]
    (half / checkpoints.STATE).write_text(json.dumps(state))
    assert run_job(run, resumed, stop)


def test_a_step_whose_pass_was_split_has_the_time_to_compile(
    tiny_model: Path,
    dataset: Path,
    run: RunFolder,
    stop: StopRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    phases: list[str] = []
    compute = torch.autograd.grad

    def grad(*arguments: Any) -> Any:
        beat = read_beat(run.heartbeat(0))
        assert beat is not None
        phases.append(beat.phase)
        if len(phases) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return compute(*arguments)

    monkeypatch.setattr(torch.autograd, "grad", grad)
    spec = make_training_spec(tiny_model, epochs=1, micro_batch=4, accumulation=1)
    assert run_job(run, make_job(spec, dataset), stop)
    # Four steps: the third pass ran out, and its step was then read in smaller ones.
    assert [phase for phase, _ in groupby(phases)] == ["probe", "train", "probe", "train"]
