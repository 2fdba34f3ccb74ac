"""Training runs move on; adapters do not."""

from __future__ import annotations

from datetime import timedelta

import pytest

from slm_core.errors import RecordNotFound, StoreError
from slm_core.records import RunState
from slm_core.store import Store
from slm_core.testing.records import make_adapter, make_losses, make_training_run


def test_a_run_is_saved_and_moves_on(store: Store) -> None:
    done = make_training_run()
    begun = make_training_run(state=RunState.RUNNING, attempts=(), adapter_id=None)
    store.runs.save(begun)
    assert store.runs.get(begun.id) == begun
    for attempts in (done.attempts[:1], done.attempts):
        running = begun.model_copy(update={"attempts": attempts})
        assert store.runs.update(running) == running
        assert store.runs.get(begun.id) == running
    store.runs.update(done)
    assert store.runs.list() == (done,)
    assert store.verify() == []


def test_saving_a_resumed_run_anew_loses_no_attempt(store: Store) -> None:
    run = make_training_run(state=RunState.INTERRUPTED)
    store.runs.save(run)
    fresh = make_training_run(
        state=RunState.RUNNING,
        attempts=(),
        adapter_id=None,
        created_at=run.created_at + timedelta(hours=1),
    )
    assert store.runs.save(fresh) == run
    assert store.runs.get(run.id) == run


def test_a_run_keeps_its_dataset_and_spec(store: Store) -> None:
    store.runs.save(make_training_run())
    with pytest.raises(StoreError, match="other content"):
        store.runs.update(make_training_run(spec_digest="another"))
    with pytest.raises(StoreError, match="other content"):
        store.runs.save(make_training_run(dataset_id="another"))


def test_a_run_that_was_never_saved_cannot_move_on(store: Store) -> None:
    with pytest.raises(RecordNotFound, match="no TrainingRun"):
        store.runs.update(make_training_run())


def test_an_adapter_reads_back_equal(store: Store) -> None:
    adapter = make_adapter()
    store.adapters.save(adapter)
    assert store.adapters.get(adapter.id) == adapter
    assert store.adapters.list() == (adapter,)


def test_the_same_weights_trained_again_keep_the_first_account(store: Store) -> None:
    first = make_adapter()
    store.adapters.save(first)
    again = make_adapter(run_id="run-2", path="/run-2/adapter", losses=make_losses(3), summary={})
    expected = first.model_copy(update={"path": "/run-2/adapter"})
    assert store.adapters.save(again) == expected
    assert store.adapters.get(first.id) == expected


def test_an_id_with_other_weights_is_refused(store: Store) -> None:
    store.adapters.save(make_adapter())
    with pytest.raises(StoreError, match="other content"):
        store.adapters.save(make_adapter(weights_sha256="0" * 64))


def test_a_summary_that_json_cannot_say_is_refused(store: Store) -> None:
    with pytest.raises(StoreError, match="cannot be stored as JSON"):
        store.adapters.save(make_adapter(summary={"loss": float("nan")}))
    assert store.adapters.list() == ()
