"""Training with real worker processes that are really killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from slm_core.errors import DatasetError, SpecChanged, WorkerDied
from slm_core.prompting.prefix import get_prefix
from slm_core.prompting.render import Renderer
from slm_core.records import Adapter, Attempt
from slm_core.testing.records import make_example
from slm_core.training import TrainingSpec, train

pytestmark = pytest.mark.integration

DEADLINE_SECONDS = 60.0

TRAIN_AND_REPORT = """
import sys
from pathlib import Path
from slm_core.training import TrainingSpec, train

spec, dataset, run_dir = sys.argv[1:]
train(
    TrainingSpec.model_validate_json(spec),
    dataset_path=Path(dataset),
    dataset_id="dataset-1",
    run_dir=Path(run_dir),
    run_id="run-1",
    on_progress=lambda done, total, what: print(done, flush=True),
)
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    for split, numbers in {"train": range(16), "val": range(50, 53)}.items():
        examples = [make_example(n, "toolcall" if n % 2 else "structured") for n in numbers]
        lines = [example.model_dump_json() + "\n" for example in examples]
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def spec(tiny_model: Path) -> TrainingSpec:
    """60 steps of about 40 ms."""
    return TrainingSpec(
        base_model=str(tiny_model),
        cep="compact",
        lora_r=4,
        lora_dropout=0.1,
        learning_rate=5e-3,
        epochs=15,
        micro_batch=2,
        accumulation=2,
        max_length=512,
        save_every_steps=4,
        threads=1,
        device="cpu",
    )


def start(spec: TrainingSpec, dataset: Path, run_dir: Path, **callbacks: Any) -> Adapter:
    return train(
        spec,
        dataset_path=dataset,
        dataset_id="dataset-1",
        run_dir=run_dir,
        run_id="run-1",
        **callbacks,
    )


@pytest.fixture(scope="module")
def unbroken(
    spec: TrainingSpec, dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Adapter, Path, list[tuple[int, int]]]:
    """A run that nothing disturbed, its folder, and the progress that was heard."""
    run_dir = tmp_path_factory.mktemp("unbroken")
    heard: list[tuple[int, int]] = []
    adapter = start(
        spec, dataset, run_dir, on_progress=lambda done, total, _: heard.append((done, total))
    )
    return adapter, run_dir, heard


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def workers_of(pid: int) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(pid).children():
        # Other tests of this process may have left a child that nobody has waited for yet.
        with contextlib.suppress(psutil.ZombieProcess, psutil.NoSuchProcess):
            if "slm_core.training.worker" in child.cmdline():
                found.append(child)
    return found


def test_a_run_leaves_an_adapter_that_plain_peft_loads(
    unbroken: tuple[Adapter, Path, list[tuple[int, int]]], tiny_model: Path
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    adapter, run_dir, _ = unbroken
    assert adapter.path == str(run_dir / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    assert adapter.prompt_hash == Renderer(tokenizer, get_prefix("compact")).prompt_hash
    assert (
        Adapter.model_validate_json((run_dir / "adapter/slm_adapter.json").read_text()) == adapter
    )
    assert adapter.id in (run_dir / "adapter/README.md").read_text()

    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        before = base(ids).logits
        after = PeftModel.from_pretrained(base, adapter.path)(ids).logits
    assert not torch.allclose(before, after)


def test_a_run_is_followed_and_summed_up(
    unbroken: tuple[Adapter, Path, list[tuple[int, int]]],
) -> None:
    adapter, run_dir, heard = unbroken
    assert heard == [(step, 60) for step in range(1, 61)]
    assert [point.step for point in adapter.losses] == list(range(1, 61))
    assert [p.step for p in adapter.losses if p.val_loss is not None] == list(range(4, 61, 4))
    summary = json.loads((run_dir / "training_summary.json").read_text())
    assert summary == adapter.summary
    assert (summary["steps"], summary["epochs"], summary["examples"]) == (60, 15, 16)
    assert summary["last_loss"] < summary["first_loss"] - 0.3
    assert summary["val_loss"] == adapter.losses[-1].val_loss
    assert (summary["attempts"], summary["dropped"]) == (1, {"too_long": 0, "other_track": 0})
    assert len(list((run_dir / "checkpoints").iterdir())) == 2


def test_tensorboard_holds_the_same_curve(
    unbroken: tuple[Adapter, Path, list[tuple[int, int]]],
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    adapter, run_dir, _ = unbroken
    board = EventAccumulator(str(run_dir / "tensorboard"))
    board.Reload()
    points = [(point.step, point.value) for point in board.Scalars("train/loss")]
    assert points == [(p.step, pytest.approx(p.loss)) for p in adapter.losses]
    assert {"val/loss", "train/grad_norm", "train/learning_rate", "train/tokens_per_second"} <= set(
        board.Tags()["scalars"]
    )


def test_a_finished_run_is_not_trained_again(
    unbroken: tuple[Adapter, Path, list[tuple[int, int]]], spec: TrainingSpec, dataset: Path
) -> None:
    adapter, run_dir, _ = unbroken
    attempts: list[Attempt] = []
    assert start(spec, dataset, run_dir, on_attempt=attempts.append) == adapter
    assert attempts == []
    with pytest.raises(SpecChanged, match=r"spec\.learning_rate"):
        start(spec.model_copy(update={"learning_rate": 1e-4}), dataset, run_dir)


def test_a_run_survives_every_way_of_dying_to_the_same_bits(
    unbroken: tuple[Adapter, Path, list[tuple[int, int]]],
    spec: TrainingSpec,
    dataset: Path,
    tmp_path: Path,
) -> None:
    attempts: list[Attempt] = []
    command = [sys.executable, "-c", TRAIN_AND_REPORT, spec.model_dump_json(), str(dataset)]
    command.append(str(tmp_path))

    # 1. The worker is killed by SIGKILL.
    def kill_at_ten(done: int, total: int, what: str) -> None:
        if done == 10:
            workers_of(os.getpid())[0].kill()

    with pytest.raises(WorkerDied, match="SIGKILL") as caught:
        start(spec, dataset, tmp_path, on_progress=kill_at_ten, on_attempt=attempts.append)
    assert caught.value.retryable
    assert caught.value.context["exit_code"] == -9
    assert caught.value.context["last_step"] >= 10
    assert attempts[-1].fault is not None
    assert attempts[-1].fault.kind == "worker_killed"

    # 2. Its newest checkpoint is damaged; the next trainer gets SIGTERM.
    newest, older = sorted((tmp_path / "checkpoints").glob("step-*"), reverse=True)[:2]
    (newest / "adapter.safetensors").write_bytes(b"damaged")
    resumed_at = int(older.name.removeprefix("step-"))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        assert int(trainer.stdout.readline()) == resumed_at + 1
        (worker,) = workers_of(trainer.pid)
        trainer.send_signal(signal.SIGTERM)
        reported = [int(line) for line in trainer.stdout]
        assert trainer.wait(DEADLINE_SECONDS) == 128 + signal.SIGTERM
    assert not worker.is_running()
    saved = max((tmp_path / "checkpoints").glob("step-*")).name
    assert int(saved.removeprefix("step-")) >= max(reported, default=resumed_at + 1)

    # 3. The next trainer is killed by SIGKILL: its worker goes with it.
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        assert int(trainer.stdout.readline()) == int(saved.removeprefix("step-")) + 1
        (worker,) = workers_of(trainer.pid)
        trainer.kill()
    wait_until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)

    # 4. Nothing happens any more.
    attempts.clear()
    adapter = start(spec, dataset, tmp_path, on_attempt=attempts.append)

    expected, _, _ = unbroken
    assert adapter.weights_sha256 == expected.weights_sha256
    assert adapter.id == expected.id
    assert [(p.step, p.loss, p.val_loss) for p in adapter.losses] == [
        (p.step, p.loss, p.val_loss) for p in expected.losses
    ]
    assert adapter.summary["supervised_tokens"] == expected.summary["supervised_tokens"]
    assert adapter.summary["attempts"] == 4
    # Told now: the attempt whose trainer could not, then this call's own, begun and ended.
    told = [(a.number, a.fault.kind if a.fault else None) for a in attempts]
    assert told == [(3, "trainer_killed"), (4, None), (4, None)]
    kept = json.loads((tmp_path / "attempts.json").read_text())
    faults = [attempt["fault"] and attempt["fault"]["kind"] for attempt in kept]
    assert faults == ["worker_killed", "interrupted", "trainer_killed", None]


def test_what_the_worker_refuses_reaches_the_caller_as_it_is(
    spec: TrainingSpec, dataset: Path, tmp_path: Path
) -> None:
    attempts: list[Attempt] = []
    short = spec.model_copy(update={"max_length": 64})
    with pytest.raises(DatasetError, match="16 of 16 rows are longer than max_length=64"):
        start(short, dataset, tmp_path, on_attempt=attempts.append)
    assert attempts[-1].fault is not None
    assert attempts[-1].fault.kind == "refused"
    assert not (tmp_path / "adapter").exists()
