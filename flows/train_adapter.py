"""Flow ``train``: a preset and a dataset become an adapter, or one for each track."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefect import flow
from prefect.futures import wait
from prefect.runtime import flow_run

from slm_core.errors import ConfigError, SpecChanged
from slm_core.presets import TRAIN_PRESETS, TrainPreset, TrainSpec
from slm_core.records import Adapter, Dataset
from slm_core.training.orders import Order, Part
from tasks._wiring import order_book, require_tracing, traced
from tasks.dataset import find_dataset
from tasks.resuming import STOPPING_SECONDS, noting_stops
from tasks.training import (
    allow_trainings,
    check_base_model,
    ready_gpus,
    show_trainings,
    stop_trainings,
    train_adapter,
)

GPUS_BESIDE_ANOTHER = 2
"""Fewer for each of two trainings at once, and one after the other on all is no slower."""


@flow(name="train")
def train_from_preset(
    preset: TrainPreset = "fledgling",
    dataset_id: str | None = None,
    base_model: str | None = None,
    run_id: str | None = None,
    overrides: TrainSpec | None = None,
) -> list[Adapter]:
    """Train by a preset. Retrying the run, or `resume`, goes on from the last checkpoint.

    Args:
        preset: name of the plan.
        dataset_id: what to learn from; empty takes what the preset says, mostly the newest.
        base_model: folder or hub id in place of the preset's model.
        run_id: folder name of this run; by default the flow run's id.
        overrides: a whole plan in place of the preset.
    """
    require_tracing()
    run_id = run_id or str(flow_run.id)
    book = order_book()
    order = book.find(run_id)
    if order is None:
        spec = _with_base_model(overrides or TRAIN_PRESETS[preset], base_model)
        order = Order(
            run_id=run_id,
            flow="train",
            spec=spec.model_dump(mode="json"),
            dataset_id=dataset_id,
            reason=preset,
        )
    else:
        _refuse_another_plan(order, overrides, base_model, dataset_id)
    order = order.model_copy(update={"flow_run_id": flow_run.root_flow_run_id})
    with book.carry_out(order, wait_seconds=STOPPING_SECONDS), noting_stops(order):
        return _train(order)


def _train(order: Order) -> list[Adapter]:
    book, run_id = order_book(), order.run_id
    spec = TrainSpec.model_validate(order.spec)
    with traced("train", run_id, preset=order.reason) as trace:
        gpus = ready_gpus(spec.training)
        check_base_model(spec.training, gpus)
        with trace.span("find or build the dataset") as span:
            dataset = find_dataset(spec, order.dataset_id, run_id)
            span.update(output={"dataset": dataset.id, "path": dataset.path})
        # What a resumed run needs; a machine with other GPUs does not change it.
        parts = order.parts or plan_parts(spec, run_id, len(gpus))
        book.note(run_id, dataset_id=dataset.id, parts=parts)
        with trace.span("train") as span:
            adapters = _train_parts(spec, parts, dataset, tuple(gpu.uuid for gpu in gpus))
            span.update(output=[adapter.id for adapter in adapters])
        show_trainings(adapters, dataset)
        trace.update(output={"adapters": [adapter.id for adapter in adapters]})
    return adapters


def plan_parts(spec: TrainSpec, run_id: str, usable: int) -> tuple[Part, ...]:
    """Return the trainings of a run on a machine with so many usable GPUs.

    Raises:
        ConfigError: the base model is to be spread over GPUs, and there is only one.
    """
    training = spec.training
    tracks = [(track,) for track in training.tracks] if spec.adapter_per_track else [None]
    gpus = min(spec.gpus, usable)
    share = gpus // len(tracks) if _at_once(spec, len(tracks), gpus) else gpus
    workers = max(1, share) if usable else training.world_size
    if training.shard and workers < 2:
        raise ConfigError(
            f"The plan spreads the base model over GPUs and {usable} can be used. Use a machine "
            "with more, or a plan with quantization='nf4' and shard off.",
            usable=usable,
        )
    return tuple(
        Part(
            run_id=run_id if only is None else f"{run_id}-{only[0]}",
            training=training.model_copy(
                update={"world_size": workers} | ({} if only is None else {"tracks": only})
            ),
        )
        for only in tracks
    )


def _train_parts(
    spec: TrainSpec, parts: Sequence[Part], dataset: Dataset, gpus: tuple[str, ...]
) -> list[Adapter]:
    """Train every part: side by side on shares of the GPUs, or one after the other on all."""
    gpus = gpus[: spec.gpus]
    if not _at_once(spec, len(parts), len(gpus)):
        return [
            train_adapter(part.training, dataset, part.run_id, gpus[: part.training.world_size])
            for part in parts
        ]
    share = len(gpus) // len(parts)
    allow_trainings()
    running = [
        train_adapter.submit(
            part.training, dataset, part.run_id, gpus[number * share : (number + 1) * share]
        )
        for number, part in enumerate(parts)
    ]
    try:
        wait(running)
    except BaseException:
        stop_trainings()
        raise
    return [future.result() for future in running]


def _at_once(spec: TrainSpec, parts: int, gpus: int) -> bool:
    if parts == 1 or spec.side_by_side == "never":
        return False
    return spec.side_by_side == "always" or gpus // parts >= GPUS_BESIDE_ANOTHER


def _with_base_model(spec: TrainSpec, base_model: str | None) -> TrainSpec:
    if base_model is None:
        return spec
    training = spec.training.model_copy(update={"base_model": base_model})
    return spec.model_copy(update={"training": training})


def _refuse_another_plan(
    order: Order, overrides: TrainSpec | None, base_model: str | None, dataset_id: str | None
) -> None:
    """Refuse to go on with a run under another plan than it began with.

    The preset's name is not compared: its figures may have changed since.
    """
    if order.flow != "train":
        raise SpecChanged(
            f"Run {order.run_id} is a retraining. Resume it with `prefect deployment run "
            "resume/run`, or train under another run_id."
        )
    asked = _with_base_model(overrides or TrainSpec.model_validate(order.spec), base_model)
    began, now = _flat(order.spec), _flat(asked.model_dump(mode="json"))
    changed = {
        name: (began.get(name), now.get(name))
        for name in sorted(began.keys() | now.keys())
        if began.get(name) != now.get(name)
    }
    if order.dataset_id and dataset_id not in (None, order.dataset_id):
        changed["dataset_id"] = (order.dataset_id, dataset_id)
    if changed:
        raise SpecChanged(
            f"Run {order.run_id} began with other values for {', '.join(changed)}. Resume it with "
            "those (`prefect deployment run resume/run`), or train under another run_id.",
            changed=changed,
        )


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {prefix + key: item}
    return flat


if __name__ == "__main__":
    train_from_preset()
