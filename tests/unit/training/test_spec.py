from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from slm_core.training import TrainingSpec


def test_the_digest_follows_every_field() -> None:
    spec = TrainingSpec(base_model="nano")
    assert spec.digest() == TrainingSpec(base_model="nano").digest()
    others: list[dict[str, Any]] = [
        {"base_model": "other"},
        {"cep": None},
        {"lora_r": 8},
        {"seed": 1},
        {"tracks": ("toolcall",)},
        {"lora_target": ("q_proj",)},
    ]
    digests = {TrainingSpec(**({"base_model": "nano"} | change)).digest() for change in others}
    assert len(digests | {spec.digest()}) == len(others) + 1


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 0},
        {"learning_rate": float("nan")},
        {"learning_rate": float("inf")},
        {"epochs": 0},
        {"micro_batch": 0},
        {"lora_dropout": 1.0},
        {"warmup_ratio": 1.0},
        {"schedule": "polynomial"},
        {"cep": "verbose"},
        {"tracks": ()},
        {"tracks": ("toolcall", "toolcall")},
        {"lora_target": ()},
        {"keep_checkpoints": 0},
        {"lora_rank": 8},
    ],
)
def test_nonsense_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TrainingSpec(**({"base_model": "nano"} | change))


def test_it_cannot_change_and_survives_json() -> None:
    spec = TrainingSpec(base_model="nano", lora_target=("q_proj", "v_proj"), cep=None)
    with pytest.raises(ValidationError):
        spec.epochs = 9  # type: ignore[misc]
    again = TrainingSpec.model_validate_json(spec.model_dump_json())
    assert again == spec
    assert again.digest() == spec.digest()
