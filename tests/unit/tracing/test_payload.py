"""What may leave in a span: numbers, ids and paths, never prompts or keys."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from slm_core.errors import StoreUnavailable
from slm_core.records import Dataset, DropReason, Message, Metric, Record
from slm_core.tracing.payload import (
    MAX_ITEMS,
    MAX_TEXT,
    REMOVED,
    clean,
    clean_metrics,
    error_text,
)


def test_plain_values_stay_as_they_are() -> None:
    value = {"rows": 100, "share": 0.5, "ok": True, "none": None, "list": [1, "a"]}
    assert clean(value) == value


def test_records_become_mappings_and_paths_text() -> None:
    dataset = Dataset(
        id="dataset-1",
        path="/runs/d",
        rows={"train": 80, "val": 10, "test": 10},
        files={},
        calls=100,
        drops={DropReason.FAILED: 3},
        spec_digest="s",
    )
    plain = clean({"dataset": dataset, "dir": Path("/runs")})
    assert plain["dataset"]["rows"] == {"train": 80, "val": 10, "test": 10}
    assert plain["dataset"]["drops"] == {"call failed": 3}
    assert plain["dir"] == "/runs"
    json.dumps(plain, allow_nan=False)


def test_records_with_text_are_left_out_wherever_they_hide() -> None:
    class Holder(Record):
        first: Message

    message = Message(role="user", content="my address is 1 Main Street")
    for value in (message, [message], {"a": {"b": message}}, Holder(first=message)):
        assert "Main Street" not in json.dumps(clean(value))


@pytest.mark.parametrize(
    "key", ["api_key", "API_KEY", "secret", "db.password", "Authorization", "secret_key"]
)
def test_values_under_a_secret_key_are_removed(key: str) -> None:
    assert clean({key: "hunter2"}) == {key: REMOVED}


@pytest.mark.parametrize("key", ["prompt_tokens", "tokens_per_second", "keyword", "monkey"])
def test_harmless_keys_are_not_taken_for_secrets(key: str) -> None:
    assert clean({key: 5}) == {key: 5}


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://slm:hunter2@db/slm",
        "key sk-lf-hunter2-hunter2",
        "header Authorization: Bearer hunter2hunter2",
        "Basic cGs6aHVudGVyMg==hunter2",
    ],
)
def test_secrets_inside_text_are_removed(text: str) -> None:
    assert "hunter2" not in clean(text)


def test_a_secret_string_is_never_said() -> None:
    assert clean({"value": SecretStr("hunter2")}) == {"value": REMOVED}


def test_long_things_are_cut_and_say_so() -> None:
    text = clean("x" * 5_000)
    assert text.startswith("x" * MAX_TEXT)
    assert "5,000 characters" in text
    items = clean(list(range(1_000)))
    assert len(items) == MAX_ITEMS + 1
    assert "1,000 items" in items[-1]


@pytest.mark.parametrize("value", [math.nan, math.inf, "\ud800", object(), {"a": {1, 2}}, {1: 2}])
def test_anything_becomes_json(value: Any) -> None:
    json.dumps(clean(value), allow_nan=False).encode("utf-8")


def test_a_loop_ends() -> None:
    loop: dict[str, Any] = {}
    loop["self"] = loop
    assert "too deep" in json.dumps(clean(loop))


def test_missing_metrics_stay_missing() -> None:
    metric = Metric(value=0.5, n=4, low=0.1, high=0.9)
    assert clean_metrics({"a": metric, "b": None, "c": math.nan, "d": 0}) == {
        "a": {"value": 0.5, "n": 4, "low": 0.1, "high": 0.9},
        "d": {"value": 0},
    }


def test_our_errors_are_told_without_passwords() -> None:
    text = error_text(StoreUnavailable("no answer from postgresql://slm:hunter2@db/slm"))
    assert text.startswith("StoreUnavailable: no answer from postgresql://")
    assert "hunter2" not in text
