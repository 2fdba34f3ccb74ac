"""What ``train`` refuses before any process is started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from slm_core.errors import CheckpointCorrupt, DatasetError, ModelError, RunBusy, SpecChanged
from slm_core.testing.records import make_example
from slm_core.training import TrainingSpec, checkpoints, train
from slm_core.training.run_folder import RunFolder


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "train.jsonl").write_text(make_example().model_dump_json() + "\n")
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")
    return folder


def refuse(model: Path, dataset: Path, run_dir: Path) -> None:
    spec = TrainingSpec(base_model=str(model))
    train(spec, dataset_path=dataset, dataset_id="d1", run_dir=run_dir, run_id="r1")
    pytest.fail("it trained")


def test_a_missing_base_model(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        refuse(tmp_path / "nowhere", dataset, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_base_model_that_is_not_what_it_claims(
    model: Path, dataset: Path, tmp_path: Path
) -> None:
    (model / "SHA256SUMS").write_text(f"{'0' * 64}  model.safetensors\n")
    with pytest.raises(ModelError) as caught:
        refuse(model, dataset, tmp_path / "run")
    assert caught.value.context["expected"] == "0" * 64


def test_a_missing_train_split(model: Path, dataset: Path, tmp_path: Path) -> None:
    (dataset / "train.jsonl").unlink()
    with pytest.raises(DatasetError, match=r"no train\.jsonl"):
        refuse(model, dataset, tmp_path / "run")


def test_a_run_whose_checkpoints_are_all_damaged(
    model: Path, dataset: Path, tmp_path: Path
) -> None:
    (tmp_path / "run/checkpoints/step-00000004").mkdir(parents=True)
    with pytest.raises(CheckpointCorrupt, match="verifies"):
        refuse(model, dataset, tmp_path / "run")


def test_a_checkpoint_that_another_spec_wrote(model: Path, dataset: Path, tmp_path: Path) -> None:
    checkpoints.save(tmp_path / "run/checkpoints", 4, {}, {"spec_digest": "other"}, keep=2)
    with pytest.raises(SpecChanged, match="another spec"):
        refuse(model, dataset, tmp_path / "run")


def test_a_run_directory_in_which_another_trainer_is_at_work(
    model: Path, dataset: Path, tmp_path: Path
) -> None:
    with RunFolder(tmp_path / "run").lock(), pytest.raises(RunBusy):
        refuse(model, dataset, tmp_path / "run")


def test_an_adapter_folder_without_its_record(model: Path, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "run/adapter").mkdir(parents=True)
    with pytest.raises(ModelError, match=r"lacks .* train it again"):
        refuse(model, dataset, tmp_path / "run")


def test_the_parent_imports_nothing_heavy() -> None:
    code = (
        "import sys, slm_core.training, slm_core.training.worker\n"
        "print({'torch', 'transformers', 'peft', 'tensorboard'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
