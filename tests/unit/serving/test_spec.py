"""A server's spec names one source of models and keeps its secrets."""

from __future__ import annotations

import pytest
from pydantic import SecretStr, ValidationError

from slm_core.serving import ServingSpec


def test_defaults_stay_on_this_machine() -> None:
    spec = ServingSpec(model_path="m")
    assert spec.host == "127.0.0.1"
    assert spec.api_key is None


def test_a_source_of_models_is_needed() -> None:
    with pytest.raises(ValidationError, match="routes_url"):
        ServingSpec()


@pytest.mark.parametrize("extra", [{"adapter_path": "a"}, {"name": "n"}, {"cep": "compact"}])
def test_routes_decide_adapter_name_and_prefix(extra: dict[str, str]) -> None:
    ServingSpec(routes_url="sqlite:///x.db", model_path="base")
    with pytest.raises(ValidationError, match="come from the store"):
        ServingSpec(routes_url="sqlite:///x.db", **extra)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong", [{"port": 70_000}, {"workers": 0}, {"max_queue": 0}, {"speed": "high"}]
)
def test_wrong_values_and_unknown_keys_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        ServingSpec(model_path="m", **wrong)  # type: ignore[arg-type]


def test_secrets_do_not_show() -> None:
    spec = ServingSpec(routes_url="postgresql://u:pw9@h/d", api_key=SecretStr("key9"))
    assert "pw9" not in repr(spec)
    assert "key9" not in repr(spec) + spec.model_dump_json()
