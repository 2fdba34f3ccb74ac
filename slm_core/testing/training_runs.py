"""Short real trainings: their data, their spec, and their worker processes."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slm_core.testing.records import make_example
from slm_core.training import TrainingSpec
from slm_core.training.orders import Order
from slm_core.training.plan import first_plan
from slm_core.training.run_folder import Identity, Job


def write_training_files(folder: Path, *, train: int = 16, val: int = 3) -> Path:
    """Write ``train.jsonl`` and ``val.jsonl`` to ``folder``, half of the rows of each track."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, numbers in {"train": range(train), "val": range(50, 50 + val)}.items():
        examples = [make_example(n, "toolcall" if n % 2 else "structured") for n in numbers]
        lines = [example.model_dump_json() + "\n" for example in examples]
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return folder


def make_training_spec(model: Path, **changes: Any) -> TrainingSpec:
    """Return a spec of 4 steps per epoch on those files, about 40 ms each on a tiny model."""
    values: dict[str, Any] = {
        "base_model": str(model),
        "cep": "compact",
        "lora_r": 4,
        "lora_dropout": 0.1,
        "learning_rate": 5e-3,
        "epochs": 15,
        "micro_batch": 2,
        "accumulation": 2,
        "max_length": 512,
        "save_every_steps": 4,
        "threads": 1,
        "device": "cpu",
    }
    return TrainingSpec(**(values | changes))


def make_job(spec: TrainingSpec, dataset_path: Path | str = "/data", **changes: Any) -> Job:
    """Return the order to the first worker of a run."""
    identity = Identity(
        run_id="run-1",
        dataset_id="dataset-1",
        files={},
        base_sha256="0" * 64,
        spec_digest=spec.digest(),
        spec=spec,
    )
    values: dict[str, Any] = {
        "identity": identity,
        "attempt": 1,
        "parent_pid": os.getppid(),
        "dataset_path": str(dataset_path),
        "model_folder": spec.base_model,
        "resume_from": None,
        "plan": first_plan(spec),
    }
    return Job(**(values | changes))


def make_order(run_id: str, **changes: Any) -> Order:
    """Return the order of a retraining that one flow run of the same id took up."""
    order = Order(run_id=run_id, flow="retrain", spec={}, flow_run_id=run_id)
    return order.model_copy(update=changes)


def workers_of(pid: int) -> dict[int, Any]:
    """Return the living training workers of process ``pid``, as psutil processes by rank."""
    import psutil

    found: dict[int, Any] = {}
    for child in psutil.Process(pid).children():
        # Another child may just have ended, with nobody to wait for it yet.
        with contextlib.suppress(psutil.ZombieProcess, psutil.NoSuchProcess):
            words = child.cmdline()
            if "slm_core.training.worker" in words and words[0] != "env":
                found[int(words[words.index("--rank") + 1])] = child
    return found


def once_started(pid: int, rank: int, act: Callable[[Any], object]) -> threading.Thread:
    """Call ``act`` with the worker of ``rank`` as soon as process ``pid`` has one."""

    def wait() -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if (worker := workers_of(pid).get(rank)) is not None:
                act(worker)
                return
            time.sleep(0.01)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread
