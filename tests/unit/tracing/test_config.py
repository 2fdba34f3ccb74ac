"""The configuration names every problem and never shows the secret."""

from __future__ import annotations

import pytest

from slm_core.errors import TracingUnavailable
from slm_core.tracing import LangfuseConfig, check_langfuse, push

FULL = {"public_key": "pk", "secret_key": "sk-hunter2", "base_url": "http://127.0.0.1:9"}


def test_a_full_configuration_has_no_problem() -> None:
    assert LangfuseConfig(**FULL).problems() == ()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"public_key": ""}, "LANGFUSE_PUBLIC_KEY"),
        ({"secret_key": ""}, "LANGFUSE_SECRET_KEY"),
        ({"base_url": ""}, "LANGFUSE_BASE_URL"),
        ({"base_url": "langfuse.example"}, "LANGFUSE_BASE_URL"),
        ({"sample_rate": 0.5}, "LANGFUSE_SAMPLE_RATE is 0.5"),
        ({"tracing_enabled": False}, "LANGFUSE_TRACING_ENABLED"),
    ],
)
def test_the_preflight_names_what_is_wrong(changes: dict[str, object], said: str) -> None:
    config = LangfuseConfig.model_validate(FULL | changes)
    with pytest.raises(TracingUnavailable, match=said):
        check_langfuse(config)


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(TracingUnavailable) as caught:
        check_langfuse(LangfuseConfig())
    assert str(caught.value).count("LANGFUSE_") == 3


def test_pushing_without_keys_keeps_everything() -> None:
    result = push([{"id": "a"}], LangfuseConfig())
    assert (result.sent, result.failed, result.ok) == ((), ("a",), False)
    assert "LANGFUSE_PUBLIC_KEY is not set" in result.reason


def test_the_secret_is_not_in_the_repr() -> None:
    assert "hunter2" not in repr(LangfuseConfig(**FULL))
