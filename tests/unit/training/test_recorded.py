"""What ended a training is told, even where the store that should note it is gone."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from slm_core.errors import ModelError, StoreUnavailable
from slm_core.records import Adapter, Dataset, TrainingRun
from slm_core.testing.records import make_dataset
from slm_core.training import TrainingSpec
from slm_core.training.recorded import train_recorded


class LostStore:
    """A store that answers once and is gone."""

    def save(self, record: TrainingRun, /) -> TrainingRun:
        return record

    def update(self, run: TrainingRun, /) -> TrainingRun:
        raise StoreUnavailable("the database did not answer")


class NoAdapters:
    def save(self, record: Adapter, /) -> Adapter:
        raise AssertionError("nothing was trained")


def test_a_lost_store_does_not_hide_what_ended_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset: Dataset = make_dataset(path=str(tmp_path))
    (tmp_path / "train.jsonl").touch()
    with caplog.at_level(logging.ERROR), pytest.raises(ModelError):
        train_recorded(
            TrainingSpec(base_model=str(tmp_path / "missing")),
            runs=LostStore(),
            adapters=NoAdapters(),
            dataset=dataset,
            folder=tmp_path / "run",
            run_id="run-1",
        )
    assert "state=failed: the database did not answer" in caplog.text.lower()
