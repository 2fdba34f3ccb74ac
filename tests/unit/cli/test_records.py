"""``slm datasets``, ``runs``, ``evaluations`` and ``store``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from slm_core.store import Store
from slm_core.testing.records import (
    make_dataset,
    make_decision,
    make_evaluation,
    make_training_run,
)


@pytest.fixture
def records(store: Store) -> Store:
    store.datasets.save(make_dataset())
    store.runs.save(make_training_run())
    store.evaluations.save(make_evaluation())
    store.decisions.save(make_decision("PARTIAL"))
    return store


def test_datasets(slm: Any, records: Store) -> None:
    dataset = make_dataset()
    assert dataset.id in slm("datasets", "list").stdout
    assert slm.json("datasets", "list") == [dataset.model_dump(mode="json")]
    shown = slm("datasets", "show", dataset.id).stdout
    assert "left out: call failed" in shown
    assert slm.json("datasets", "show", dataset.id)["rows"]["test"] == 100
    assert "'nothing'" in slm.refused("datasets", "show", "nothing")


def test_runs(slm: Any, records: Store) -> None:
    run = make_training_run()
    shown = slm("runs", "list").stdout
    assert run.id in shown
    assert "out_of_memory" in shown
    (found,) = slm.json("runs", "list")
    assert (found["run_id"], found["state"]) == (run.id, "completed")
    assert found["parts"][0]["attempts"] == [a.model_dump(mode="json") for a in run.attempts]


def test_evaluations(slm: Any, records: Store) -> None:
    evaluation = make_evaluation()
    assert "PARTIAL" in slm("evaluations", "list").stdout
    shown = slm("evaluations", "show", evaluation.id).stdout
    assert "Student + CEP" in shown
    assert "88.7–99.5" in shown
    full = slm.json("evaluations", "show", evaluation.id)
    assert full == evaluation.model_dump(mode="json")
    assert "'nothing'" in slm.refused("evaluations", "show", "nothing")


def test_verify_finds_what_was_edited_by_hand(slm: Any, records: Store, slm_home: Path) -> None:
    assert "everything" in slm("store", "verify").stdout
    assert slm.json("store", "verify") == []
    engine = sa.create_engine(f"sqlite:///{slm_home / 'slm.db'}", poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE datasets SET record = replace(record, '300', '301')"))
    result = slm("store", "verify", status=1)
    assert make_dataset().id in result.stdout
    assert result.stderr == ""


def test_upgrade_makes_a_store(slm: Any, slm_home: Path) -> None:
    assert "revision" in slm("store", "upgrade").stdout
    assert (slm_home / "slm.db").exists()
    assert slm.json("runs", "list") == []
