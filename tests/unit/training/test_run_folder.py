from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from slm_core.errors import ConfigError, RunBusy, SpecChanged
from slm_core.training import TrainingSpec
from slm_core.training.run_folder import Identity, RunFolder


def make_identity(base_sha256: str = "aa", dataset_id: str = "d1", **changes: Any) -> Identity:
    spec = TrainingSpec(**({"base_model": "nano"} | changes))
    return Identity(
        run_id="r1",
        dataset_id=dataset_id,
        files={"train.jsonl": "11"},
        base_sha256=base_sha256,
        spec_digest=spec.digest(),
        spec=spec,
    )


def make_begun_run(path: Path) -> RunFolder:
    run = RunFolder(path)
    run.settle_identity(make_identity())
    (run.checkpoints / "step-00000001").mkdir(parents=True)
    return run


def test_the_same_identity_may_continue(tmp_path: Path) -> None:
    make_begun_run(tmp_path).settle_identity(make_identity())


@pytest.mark.parametrize(
    ("now", "keys"),
    [
        (make_identity(learning_rate=1e-3, epochs=9), {"spec.learning_rate", "spec.epochs"}),
        (make_identity(cep=None), {"spec.cep"}),
        (make_identity(dataset_id="d2"), {"dataset_id"}),
        (make_identity(base_sha256="bb"), {"base_sha256"}),
        (
            make_identity().model_copy(update={"files": {"train.jsonl": "22"}}),
            {"files.train.jsonl"},
        ),
        (
            make_identity().model_copy(update={"files": {"train.jsonl": "11", "val.jsonl": "3"}}),
            {"files.val.jsonl"},
        ),
    ],
)
def test_another_identity_is_refused_and_every_key_named(
    tmp_path: Path, now: Identity, keys: set[str]
) -> None:
    run = make_begun_run(tmp_path)
    with pytest.raises(SpecChanged) as caught:
        run.settle_identity(now)
    assert set(caught.value.context["changed"]) == keys
    assert all(key in caught.value.message for key in keys)
    run.settle_identity(make_identity())  # the refusal changed nothing


def test_a_run_without_progress_may_begin_otherwise(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.settle_identity(make_identity(epochs=1))
    run.settle_identity(make_identity(epochs=2))
    run.adapter.mkdir()
    with pytest.raises(SpecChanged):
        run.settle_identity(make_identity(epochs=1))


def test_only_one_trainer_at_a_time(tmp_path: Path) -> None:
    with RunFolder(tmp_path).lock():
        with pytest.raises(RunBusy) as caught, RunFolder(tmp_path).lock():
            pass
        assert caught.value.retryable
    with RunFolder(tmp_path).lock():
        pass


def test_a_worker_without_a_job_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"job\.json"):
        RunFolder(tmp_path).read_job()
