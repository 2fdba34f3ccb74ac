"""The JSON that is hashed, and the ids made of it."""

from __future__ import annotations

from typing import Any

import pytest

from slm_core.records import Call, Message, Metric, ToolUse, canonical_json, content_id, sha256_hex

NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    "value",
    [
        NAN,
        [{"a": -INFINITY}],
        Metric(value=NAN, n=1, low=0.0, high=1.0),
        ToolUse(name="f", arguments={"x": [INFINITY]}),
        Message(role="user", content="", tool_calls=(ToolUse(name="f", arguments={"x": NAN}),)),
    ],
)
def test_what_json_cannot_say_is_refused_and_never_written_as_null(value: Any) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(value)


def test_a_call_with_nan_has_no_digest_of_another() -> None:
    call = Call(
        id="c",
        agent_type="sub-agent",
        agent_name="desk",
        model="m",
        conversation_id="c",
        messages=(Message(role="user", content="hi"),),
        tool_calls=(ToolUse(name="f", arguments={"x": NAN}),),
        success=True,
    )
    with pytest.raises(ValueError, match="not JSON compliant"):
        call.digest()


def test_the_order_of_keys_does_not_matter() -> None:
    assert canonical_json({"b": 1, "a": "ü"}) == '{"a":"ü","b":1}'
    assert content_id("x", {"b": 1, "a": 2}) == content_id("x", {"a": 2, "b": 1})


def test_a_record_is_hashed_as_its_json() -> None:
    use = ToolUse(name="f", arguments={"n": 1, "ok": True})
    text = '{"arguments":{"n":1,"ok":true},"name":"f"}'
    assert canonical_json(use) == text
    assert content_id("use", use) == f"use-{sha256_hex(text)[:16]}"


def test_lone_surrogates_hash() -> None:
    assert content_id("m", Message(role="user", content="a\ud800")) != content_id(
        "m", Message(role="user", content="a\ud801")
    )
