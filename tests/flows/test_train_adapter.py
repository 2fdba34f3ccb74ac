"""A preset and calls become adapters; the same run asked for again is the same run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.settings import PREFECT_API_URL

from flows.train_adapter import plan_parts, train_from_preset
from slm_core.dataset import DatasetSpec, build, read_split
from slm_core.errors import ConfigError, SpecChanged
from slm_core.presets import TRAIN_PRESETS, TrainSpec
from slm_core.records import Adapter, Dataset, RunState, Split
from slm_core.testing.records import make_training_run
from slm_core.training.spec import TrainingSpec
from tasks import _wiring
from tasks._wiring import order_book
from tasks.dataset import find_dataset

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def shared(make_service: Callable[[], Any]) -> Any:
    """One service whose store holds 20 calls, for tests that only add runs."""
    service = make_service()
    service.configure()
    service.claimed()
    return service


@pytest.fixture
def service(shared: Any) -> Iterator[Any]:
    shared.configure()
    yield shared
    _wiring._settings.clear()


def plan(service: Any, **changes: Any) -> TrainSpec:
    training = {name: changes.pop(name) for name in ("epochs", "base_model") if name in changes}
    given: dict[str, Any] = {
        "training": service.plan(**training).training,
        "rows_from": "calls",
        "dataset": DatasetSpec(min_examples=10, min_split_rows=1),
    }
    return TrainSpec(**given | changes)


def artifact(key: str) -> str:
    """Return what the dashboard shows under ``key``."""
    asked = {"artifacts": {"key": {"any_": [key]}}}
    answer = httpx.post(f"{PREFECT_API_URL.value()}/artifacts/latest/filter", json=asked)
    return answer.json()[0]["data"]


def train(run_id: str, **arguments: Any) -> list[Adapter]:
    return train_from_preset(run_id=run_id, **arguments)


def error_of(run_id: str, **arguments: Any) -> BaseException:
    state = train_from_preset(run_id=run_id, **arguments, return_state=True)
    error = state.result(raise_on_failure=False)
    assert isinstance(error, BaseException), state
    return error


def test_calls_become_an_adapter_and_the_run_is_shown(service: Any) -> None:
    spec = plan(service)
    service.configure(SLM_TRAINING_USD_PER_HOUR="7.2")
    (adapter,) = train("one", overrides=spec)
    assert adapter.summary["cost_usd"] > 0

    order = order_book().get("one")
    assert (order.state, order.flow) == (RunState.COMPLETED, "train")
    assert TrainSpec.model_validate(order.spec) == spec
    assert [part.training for part in order.parts] == [spec.training]
    with service.store() as store:
        (dataset,) = store.datasets.list()
        (run,) = store.runs.list()
        assert store.adapters.get(adapter.id).path == adapter.path
    assert (run.id, run.state, run.adapter_id) == ("one", RunState.COMPLETED, adapter.id)
    assert order.dataset_id == dataset.id == adapter.dataset_id
    assert adapter.id in artifact("training")
    (row,) = json.loads(artifact("attempts"))
    assert (row["attempt"], row["why this plan"]) == ("1", "first plan")

    began = Path(adapter.path).stat().st_mtime_ns
    assert [again.id for again in train("one")] == [adapter.id]  # as Retry does
    assert Path(adapter.path).stat().st_mtime_ns == began
    error = error_of("one", overrides=plan(service, epochs=3))
    assert isinstance(error, SpecChanged)
    assert error.context["changed"] == {"training.epochs": (1, 3)}


def test_each_track_gets_its_adapter_side_by_side_or_one_after_the_other(service: Any) -> None:
    together = train("both", overrides=plan(service, adapter_per_track=True, side_by_side="always"))
    assert [adapter.tracks for adapter in together] == [("structured",), ("toolcall",)]
    with service.store() as store:
        runs = {run.id: run for run in store.runs.list()}
    first, second = runs["both-structured"].attempts[0], runs["both-toolcall"].attempts[0]
    assert first.ended_at is not None
    assert second.started_at < first.ended_at

    # No GPU here, so that `auto` trains one after the other.
    apart = train("each", overrides=plan(service, adapter_per_track=True))
    assert [adapter.id for adapter in apart] == [adapter.id for adapter in together]
    with service.store() as store:
        runs = {run.id: run for run in store.runs.list()}
    first, second = runs["each-structured"].attempts[0], runs["each-toolcall"].attempts[0]
    assert first.ended_at is not None
    assert second.started_at >= first.ended_at


def test_a_model_that_cannot_be_had_stops_the_run_before_any_work(service: Any) -> None:
    # Tests are offline, and no cache holds the model.
    error = error_of("gated", preset="llama-cep")
    assert isinstance(error, ConfigError)
    assert "meta-llama/Llama-3.1-8B-Instruct" in str(error)
    assert "HF_HUB_OFFLINE" in str(error)
    order = order_book().get("gated")
    assert (order.state, order.parts, order.dataset_id) == (RunState.FAILED, (), None)
    assert not (service.folder / "runs" / "gated" / "training").exists()


def test_a_base_model_may_be_named_in_place_of_the_presets(service: Any) -> None:
    error = error_of("other", preset="llama-cep", base_model="./nowhere")
    assert "./nowhere" in str(error)
    assert order_book().get("other").spec["training"]["base_model"] == "./nowhere"


def test_rows_come_from_where_the_plan_says(service: Any, tmp_path: Path) -> None:
    built = find_dataset.fn(plan(service), None, "rows-1")
    newest = plan(service, rows_from="newest")
    assert find_dataset.fn(newest, None, "rows-2").id == built.id
    tool = {"type": "function", "function": {"name": "book", "parameters": {"type": "object"}}}
    rows = [
        {
            "id": f"row-{number}",
            "tools": json.dumps([tool]),
            "conversations": [
                {"from": "human", "value": f"Book number {number}."},
                {
                    "from": "gpt",
                    "value": f'<tool_call>{{"name": "book", "arguments": {{"n": {number}}}}}'
                    "</tool_call>",
                },
            ],
        }
        for number in range(30)
    ]
    file = tmp_path / "hermes.json"
    file.write_text(json.dumps(rows))
    paper = plan(
        service,
        rows_from="hermes",
        hermes_file=str(file),
        dataset=DatasetSpec(rows={"train": 20, "val": 10, "test": 10}, min_examples=40),
    )
    hermes = find_dataset.fn(paper, None, "rows-3")
    assert hermes.rows == {"train": 20, "val": 10, "test": 10}
    # A resumed run keeps its own, and a named one comes before all.
    assert find_dataset.fn(newest, None, "rows-1").id == built.id
    assert find_dataset.fn(paper, built.id, "rows-4").id == built.id


def test_what_a_finished_retraining_tested_on_never_trains(
    make_service: Callable[[], Any],
) -> None:
    service = make_service()
    claim_id = service.claimed()
    other = plan(service)
    with service.store() as store:
        calls = list(store.calls.select())
        half = DatasetSpec(min_examples=10, min_split_rows=1, test_fraction=0.5)
        old = build(calls, half, service.folder / "datasets")
        store.claims.take(claim_id, "retrained")
        store.datasets.save(old)
        store.runs.save(make_training_run(id="retrained", dataset_id=old.id))
        unfinished = find_dataset.fn(other, None, "rows-1")
        store.claims.done(claim_id, "retrained")
    dataset = find_dataset.fn(other, None, "rows-2")
    _wiring._settings.clear()

    def ids(built: Dataset, *splits: Split) -> set[str]:
        return {row.id for split in splits for row in read_split(built.path, split)}

    assert not ids(old, "test") <= ids(unfinished, "test")
    assert ids(old, "test") <= ids(dataset, "test")
    assert not ids(old, "test") & ids(dataset, "train", "val")
    assert dataset.parent_test_ids == (old.id,)
    assert dataset.drops == {}


@pytest.mark.parametrize(
    ("usable", "workers"),
    [(0, [1, 1]), (1, [1, 1]), (2, [2, 2]), (3, [3, 3]), (4, [2, 2]), (8, [2, 2])],
)
def test_fledgling_takes_two_and_two_gpus_or_what_there_is(usable: int, workers: list[int]) -> None:
    parts = plan_parts(TRAIN_PRESETS["fledgling"], "run", usable)
    assert [part.run_id for part in parts] == ["run-structured", "run-toolcall"]
    assert [part.training.tracks for part in parts] == [("structured",), ("toolcall",)]
    assert [part.training.world_size for part in parts] == workers
    one_launch = TRAIN_PRESETS["fledgling"].model_copy(update={"side_by_side": "never"})
    assert plan_parts(one_launch, "run", 4)[0].training.world_size == 4


def test_a_model_to_be_spread_over_gpus_needs_two() -> None:
    training = TrainingSpec(base_model="big", world_size=2, shard=True)
    spec = TrainSpec(training=training, gpus=4)
    assert plan_parts(spec, "run", 4)[0].training.world_size == 4
    with pytest.raises(ConfigError, match="1 can be used"):
        plan_parts(spec, "run", 1)
