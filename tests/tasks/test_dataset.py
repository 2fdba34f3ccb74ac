"""Datasets of a run: what the plan leaves out."""

from __future__ import annotations

from pathlib import Path

import pytest

from slm_core.dataset import DatasetSpec, why_unusable
from slm_core.presets import NANO, TrainSpec
from slm_core.records import Call, Message
from slm_core.store import Store
from slm_core.testing.records import make_call
from tasks.dataset import build_dataset, find_dataset, make_test_set

LIMIT = 700


@pytest.fixture
def long_call(store: Store) -> Call:
    """Calls in the store, of which this one is longer than the limit in tokens."""
    words = Message(role="user", content="weather " * LIMIT)
    calls = [make_call(n) for n in range(40)]
    calls.append(make_call(40, messages=(words,), conversation_id="long"))
    assert store.calls.add(calls, why_unusable).unusable == {}
    return calls[-1]


def test_long_examples_are_left_out_by_the_base_models_own_tokens(
    store: Store, tiny_model: Path, long_call: Call
) -> None:
    rows = DatasetSpec(min_examples=10, min_split_rows=1, max_tokens=LIMIT)
    training = NANO.training.model_copy(update={"base_model": str(tiny_model)})
    (claim,) = store.claims.make(41)

    found = find_dataset.fn(
        TrainSpec(training=training, rows_from="calls", dataset=rows), None, "one"
    )
    test_set = make_test_set.fn(NANO.eval.test_set)
    built = build_dataset.fn(
        NANO.model_copy(update={"training": training, "dataset": rows}), claim, "two", test_set
    )

    for dataset in (found, built):
        assert dataset.drops == {"longer than the model's context": 1}
        assert long_call.id in (Path(dataset.path) / "drops.jsonl").read_text()
        assert '"length_unit": "tokens"' in (Path(dataset.path) / "statistics.json").read_text()
