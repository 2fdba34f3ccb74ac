"""The worker that merges has a time limit, and so has its end."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from slm_core.errors import TrainingError
from slm_core.training import merge
from slm_core.training.merged_model import MergeOrder


@pytest.fixture
def order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MergeOrder:
    """An order to a worker that takes longer than it may: it starts for more than a second."""
    monkeypatch.setattr(merge, "_WORK_SECONDS", 0.05)
    return MergeOrder(
        parent_pid=os.getpid(),
        adapter_path=str(tmp_path / "adapter"),
        model_folder=str(tmp_path / "base"),
        model=str(tmp_path / "model"),
        variant=None,
        prompt_hash="",
        dtype="auto",
        trained_on_nf4=False,
        merge_into_nf4=False,
        precision="float32",
        prompts=(),
        dataset_path=None,
        max_rows=0,
        device="cpu",
        threads=1,
    )


def test_a_worker_that_does_not_end_is_killed(order: MergeOrder, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(TrainingError, match="did not end within"):
        merge._work(tmp_path, order)
    assert time.monotonic() - began < 5
    assert merge._abandoned == []


def test_a_worker_that_cannot_be_killed_is_left_behind(
    order: MergeOrder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As for a process that waits inside a broken driver: signals have no effect.
    with monkeypatch.context() as patched:
        patched.setattr(merge, "_KILL_SECONDS", 0.1)
        patched.setattr(subprocess.Popen, "send_signal", _nothing)
        with pytest.raises(TrainingError, match="did not end within"):
            merge._work(tmp_path, order)
    worker = merge._abandoned.pop()
    worker.kill()
    worker.wait()


def _nothing(process: Any, number: int) -> None:
    pass
