"""Prefect's forms explain themselves: every parameter and every field behind it is described."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from prefect import Flow
from prefect.utilities.callables import parameter_schema

from slm_core.presets import EvalPreset, RetrainPreset, TrainPreset
from slm_core.records import TRACKS

ROOT = Path(__file__).parents[2]
DECLARED = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
ENTRYPOINTS = sorted({one["entrypoint"] for one in DECLARED})


def load(entrypoint: str) -> Flow[..., Any]:
    file, function = entrypoint.split(":")
    module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    return getattr(module, function)


def form(entrypoint: str) -> dict[str, Any]:
    """Return the JSON Schema from which the dashboard draws the form."""
    return parameter_schema(load(entrypoint)).model_dump()


def silent(schema: dict[str, Any]) -> list[str]:
    """Return parameters and fields of nested specs that have no description."""
    found = [name for name, value in schema["properties"].items() if not value.get("description")]
    for spec, definition in schema.get("definitions", {}).items():
        for name, value in definition.get("properties", {}).items():
            if not value.get("description"):
                found.append(f"{spec}.{name}")
    return found


@pytest.mark.parametrize("entrypoint", ENTRYPOINTS)
def test_every_parameter_and_field_is_described(entrypoint: str) -> None:
    assert silent(form(entrypoint)) == []


@pytest.mark.parametrize("entrypoint", ENTRYPOINTS)
def test_the_flow_itself_is_described(entrypoint: str) -> None:
    assert load(entrypoint).description


def test_a_silent_parameter_would_be_found() -> None:
    schema = {
        "properties": {"a": {"description": "what"}, "b": {}},
        "definitions": {"Spec": {"properties": {"c": {}}}},
    }
    assert silent(schema) == ["b", "Spec.c"]


@pytest.mark.parametrize(
    ("entrypoint", "choices"),
    [
        ("flows/evaluate_model.py:evaluate_model", get_args(EvalPreset)),
        ("flows/retrain_student.py:retrain_student", get_args(RetrainPreset)),
        ("flows/train_adapter.py:train_from_preset", get_args(TrainPreset)),
    ],
)
def test_a_preset_is_a_choice(entrypoint: str, choices: tuple[str, ...]) -> None:
    preset = form(entrypoint)["properties"]["preset"]
    assert tuple(preset.get("enum") or [preset["const"]]) == choices


def test_closed_sets_of_a_spec_are_choices() -> None:
    definitions = form("flows/train_adapter.py:train_from_preset")["definitions"]
    training = definitions["TrainingSpec"]["properties"]
    assert training["tracks"]["items"]["enum"] == list(TRACKS)
    assert training["quantization"]["enum"] == ["none", "nf4"]


@pytest.mark.parametrize("entrypoint", ENTRYPOINTS)
def test_what_a_deployment_presets_is_a_parameter_of_its_flow(entrypoint: str) -> None:
    known = form(entrypoint)["properties"].keys()
    for one in DECLARED:
        if one["entrypoint"] == entrypoint:
            assert one.get("parameters", {}).keys() <= known
            load(entrypoint).validate_parameters(one.get("parameters", {}))
