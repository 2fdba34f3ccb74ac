"""Specs are frozen, refuse unknown keys, and explain every field in Prefect's form."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from pydantic import BaseModel

ROOT = Path(__file__).parents[2]
STAGES = sorted(path.parent.name for path in (ROOT / "slm_core").glob("*/spec.py"))


def test_stages_have_specs() -> None:
    assert {"capture", "dataset", "training", "evaluation", "decision"} <= set(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_specs_are_frozen_strict_and_described(stage: str) -> None:
    module = importlib.import_module(f"slm_core.{stage}.spec")
    specs = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, BaseModel)
        and value.__module__ == module.__name__
    ]
    assert specs
    for spec in specs:
        assert spec.model_config.get("frozen") is True, spec.__name__
        assert spec.model_config.get("extra") == "forbid", spec.__name__
        silent = [name for name, field in spec.model_fields.items() if not field.description]
        assert silent == [], spec.__name__
