"""Training with real worker processes that are really killed."""

from __future__ import annotations

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

from slm_core.errors import DatasetError, SpecChanged
from slm_core.prompting.prefix import get_prefix
from slm_core.prompting.render import Renderer
from slm_core.records import Adapter, Attempt
from slm_core.testing.training_runs import make_training_spec, workers_of, write_training_files
from slm_core.training import TrainingSpec, train
from slm_core.training.heartbeat import FLOOR_SECONDS
from slm_core.training.supervise import Limits

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
    return write_training_files(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def spec(tiny_model: Path) -> TrainingSpec:
    """60 steps."""
    return make_training_spec(tiny_model)


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
        spec,
        dataset,
        run_dir,
        on_progress=lambda done, total, _: heard.append((done, total)),
        usd_per_hour=7.2,
    )
    return adapter, run_dir, heard


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


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
    assert summary["cost_usd"] == pytest.approx(summary["wall_seconds"] * 0.002, abs=1e-5)
    assert summary["attempts"] == 1
    assert summary["dropped"] == {"too_long": 0, "other_track": 0, "uncuttable": 0}
    names = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert [name[:5] for name in names] == ["best-", "best-", "step-", "step-"]
    assert names[2:] == ["step-00000056", "step-00000060"]
    assert [path.name for path in run_dir.glob("error-*")] == []


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


def same(adapter: Adapter, expected: Adapter) -> None:
    """Compare everything that was learned and reported."""
    assert adapter.weights_sha256 == expected.weights_sha256
    assert adapter.id == expected.id
    assert [(p.step, p.loss, p.val_loss) for p in adapter.losses] == [
        (p.step, p.loss, p.val_loss) for p in expected.losses
    ]
    assert adapter.summary["supervised_tokens"] == expected.summary["supervised_tokens"]


def test_a_worker_that_dies_or_hangs_is_replaced_to_the_same_bits(
    unbroken: tuple[Adapter, Path, list[tuple[int, int]]],
    spec: TrainingSpec,
    dataset: Path,
    tmp_path: Path,
) -> None:
    attempts: list[Attempt] = []
    ended: list[float] = []
    done_at: list[float] = []
    reached = {"killed": 0}

    def disturb(done: int, total: int, what: str) -> None:
        done_at.append(time.monotonic())
        number = len({attempt.number for attempt in attempts})
        worker = workers_of(os.getpid()).get(0)
        if worker is None:
            return
        if number == 1 and done >= 10 and not reached["killed"]:
            reached["killed"] = done
            worker.kill()
        if number == 2 and done == 20:
            worker.suspend()

    def on_attempt(attempt: Attempt) -> None:
        attempts.append(attempt)
        if attempt.number == 1 and attempt.fault is not None:
            # What the worker saved last is damaged: the one before must do.
            newest = max((tmp_path / "checkpoints").glob("step-*"))
            (newest / "adapter.safetensors").write_bytes(b"damaged")
        if attempt.fault is not None:
            ended.append(time.monotonic())

    floors = {**FLOOR_SECONDS, "train": 3.0, "eval": 3.0, "save": 3.0}
    adapter = start(
        spec,
        dataset,
        tmp_path,
        on_progress=disturb,
        on_attempt=on_attempt,
        limits=Limits(hang_floor_seconds=floors, hung_grace_seconds=0.2),
    )
    same(adapter, unbroken[0])
    last = {attempt.number: attempt for attempt in attempts}
    assert sorted(last) == [1, 2, 3]
    killed, hung = last[1].fault, last[2].fault
    assert killed is not None
    assert (killed.kind, killed.exit_code, killed.rank) == ("worker_killed", -9, 0)
    assert killed.step is not None
    assert killed.step >= reached["killed"]
    # The newest checkpoint of attempt 1 is damaged; attempt 2 began at the one before.
    assert list((tmp_path / "checkpoints").glob("corrupt-step-*"))
    assert last[2].first_step <= reached["killed"] - 4
    assert "worker_killed" in last[2].reason
    assert hung is not None
    assert hung.kind == "hung"
    assert hung.detected_after_seconds is not None
    assert 3.0 < hung.detected_after_seconds < 10.0
    assert "no sign of life" in last[3].reason
    assert last[3].fault is None
    assert workers_of(os.getpid()) == {}
    # Dead workers are noticed within two seconds.
    died_at = max(t for t in done_at if t < ended[0])
    assert ended[0] - died_at < 2.0


def test_a_trainer_that_dies_takes_its_worker_along_and_resumes_to_the_same_bits(
    unbroken: tuple[Adapter, Path, list[tuple[int, int]]],
    spec: TrainingSpec,
    dataset: Path,
    tmp_path: Path,
) -> None:
    attempts: list[Attempt] = []
    command = [sys.executable, "-c", TRAIN_AND_REPORT, spec.model_dump_json(), str(dataset)]
    command.append(str(tmp_path))

    # 1. The trainer gets SIGTERM: its worker saves, and both end.
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        assert int(trainer.stdout.readline()) == 1
        worker = workers_of(trainer.pid)[0]
        trainer.send_signal(signal.SIGTERM)
        reported = [int(line) for line in trainer.stdout]
        assert trainer.wait(DEADLINE_SECONDS) == 128 + signal.SIGTERM
    assert not worker.is_running()
    saved = max((tmp_path / "checkpoints").glob("step-*")).name
    assert int(saved.removeprefix("step-")) >= max(reported, default=1)

    # 2. The next trainer is killed by SIGKILL: its worker goes with it.
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        assert int(trainer.stdout.readline()) == int(saved.removeprefix("step-")) + 1
        worker = workers_of(trainer.pid)[0]
        trainer.kill()
    wait_until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)

    # 3. Nothing happens any more.
    adapter = start(spec, dataset, tmp_path, on_attempt=attempts.append)
    same(adapter, unbroken[0])
    assert adapter.summary["attempts"] == 3
    # Told now: the attempt whose trainer could not, then this call's own, begun and ended.
    told = [(a.number, a.fault.kind if a.fault else None) for a in attempts]
    assert told == [(2, "trainer_killed"), (3, None), (3, None)]
    kept = json.loads((tmp_path / "attempts.json").read_text())
    faults = [attempt["fault"] and attempt["fault"]["kind"] for attempt in kept]
    assert faults == ["interrupted", "trainer_killed", None]


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
