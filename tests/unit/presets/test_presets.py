"""Every named plan loads, explains itself, and has the figures that were agreed on."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from slm_core import presets
from slm_core.presets import (
    EVAL_PRESETS,
    LLAMA_8B,
    MERGED_BASE,
    PHI_4,
    PHI_4_MINI,
    RETRAIN_PRESETS,
    TRAIN_PRESETS,
    EvalPreset,
    RetrainPreset,
    TrainPreset,
    TrainSpec,
)
from slm_core.training.spec import TrainingSpec

# name: model, LoRA r/alpha/dropout, learning rate, epochs, micro batch x accumulation, length,
# prefix, 4-bit.
TABLE: dict[TrainPreset, tuple[Any, ...]] = {
    "fledgling": (PHI_4_MINI, 64, 16, 0.1, 2e-4, 1, 1, 16, 2048, None, "nf4"),
    "paper-llama": (LLAMA_8B, 16, 32, 0.05, 2e-4, 3, 4, 4, 2048, None, "none"),
    "paper-llama-scaled": (LLAMA_8B, 16, 32, 0.05, 2e-4, 5, 4, 4, 2048, None, "none"),
    "paper-phi": (PHI_4_MINI, 16, 32, 0.05, 2e-4, 3, 4, 4, 2048, None, "none"),
    "paper-phi-scaled": (PHI_4_MINI, 16, 32, 0.05, 2e-4, 5, 4, 4, 2048, None, "none"),
    "llama-cep": (LLAMA_8B, 16, 32, 0.05, 2e-4, 3, 1, 16, 2048, "universal", "none"),
    "phi-cep": (PHI_4, 16, 32, 0.05, 2e-4, 3, 1, 8, 1536, "compact", "none"),
    "targeted": (MERGED_BASE, 64, 16, 0.05, 3e-6, 3, 4, 8, 2048, "universal", "none"),
}
SPECS: list[tuple[str, BaseModel]] = [
    *((f"train/{name}", spec) for name, spec in TRAIN_PRESETS.items()),
    *((f"retrain/{name}", spec) for name, spec in RETRAIN_PRESETS.items()),
    *((f"eval/{name}", spec) for name, spec in EVAL_PRESETS.items()),
]


@pytest.mark.parametrize("name", TABLE)
def test_the_figures_are_those_of_the_table(name: TrainPreset) -> None:
    t = TRAIN_PRESETS[name].training
    assert TABLE[name] == (
        t.base_model,
        t.lora_r,
        t.lora_alpha,
        t.lora_dropout,
        t.learning_rate,
        t.epochs,
        t.micro_batch,
        t.accumulation,
        t.max_length,
        t.cep,
        t.quantization,
    )


@pytest.mark.parametrize(("name", "spec"), SPECS, ids=[name for name, _ in SPECS])
def test_a_preset_survives_the_way_through_json_and_its_own_validation(
    name: str, spec: BaseModel
) -> None:
    # model_copy, with which some are made, checks nothing.
    assert type(spec).model_validate_json(spec.model_dump_json()) == spec


def test_every_name_that_a_flow_offers_has_a_plan() -> None:
    assert set(get_args(TrainPreset)) == set(TRAIN_PRESETS) == {*TABLE, "nano"}
    assert set(get_args(RetrainPreset)) == set(RETRAIN_PRESETS)
    assert set(get_args(EvalPreset)) == set(EVAL_PRESETS)


def test_specs_of_presets_are_frozen_strict_and_described() -> None:
    specs = [
        value
        for value in vars(presets).values()
        if isinstance(value, type)
        and issubclass(value, BaseModel)
        and value.__module__ == presets.__name__
    ]
    assert TrainSpec in specs
    for spec in specs:
        assert spec.model_config.get("frozen") is True, spec.__name__
        assert spec.model_config.get("extra") == "forbid", spec.__name__
        assert [n for n, f in spec.model_fields.items() if not f.description] == [], spec.__name__


def test_fledgling_is_one_adapter_a_track_on_four_gpus() -> None:
    plan = TRAIN_PRESETS["fledgling"]
    assert (plan.adapter_per_track, plan.gpus, plan.side_by_side) == (True, 4, "auto")
    assert plan.training.tracks == ("structured", "toolcall")


@pytest.mark.parametrize("model", ["llama", "phi"])
def test_the_paper_rows_come_from_hermes_and_scale_up(model: str) -> None:
    plain = TRAIN_PRESETS[f"paper-{model}"]  # type: ignore[index]
    scaled = TRAIN_PRESETS[f"paper-{model}-scaled"]  # type: ignore[index]
    assert plain.rows_from == scaled.rows_from == "hermes"
    assert plain.dataset.rows == {"train": 100, "val": 50, "test": 50}
    assert scaled.dataset.rows == {"train": 1000, "val": 200, "test": 200}
    assert plain.dataset.seed == scaled.dataset.seed == 42


def test_llama_cep_gives_way_as_its_experiment_did() -> None:
    t = TRAIN_PRESETS["llama-cep"].training
    assert (t.on_oom, t.shorter_lengths) == ("recipe", (1536,))


def test_targeted_stops_early_and_validates_on_a_twentieth() -> None:
    plan = TRAIN_PRESETS["targeted"]
    t = plan.training
    assert (t.patience, t.eval_every_steps, t.save_every_steps) == (3, 500, 1000)
    assert t.restore_best
    assert plan.dataset.val_fraction == 0.05


def test_a_plan_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ValidationError, match="adapter_per_track"):
        TrainSpec(training=TrainingSpec(base_model="x"), side_by_side="always")
