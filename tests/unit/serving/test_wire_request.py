"""A chat request is read as OpenAI means it, or refused with the field at fault."""

from __future__ import annotations

import json
from typing import Any

import pytest

from slm_core.backends.base import Request
from slm_core.errors import BadRequest
from slm_core.records import Message, ToolUse
from slm_core.serving.wire_request import ChatBody, read_body

USER = {"role": "user", "content": "hi"}
OFFER = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"type": "object"}},
}


def read(**fields: Any) -> ChatBody:
    return read_body(json.dumps({"model": "m", "messages": [USER], **fields}).encode())


def request(**fields: Any) -> Request:
    return read(**fields).request()


def test_every_kind_of_turn() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    prompt = request(
        messages=[
            {"role": "developer", "content": "rules", "name": "x"},
            {"role": "user", "content": [{"type": "text", "text": t} for t in ("one", "two")]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "7", "tool_call_id": "c1"},
        ]
    ).prompt
    assert prompt == (
        Message(role="system", content="rules"),
        Message(role="user", content="one\ntwo"),
        Message(
            role="assistant",
            content="",
            tool_calls=(ToolUse(name="f", arguments={"a": 1}),),
        ),
        Message(role="tool", content="7"),
    )


@pytest.mark.parametrize(
    ("choice", "native"), [(None, True), ("auto", True), ("required", True), ("none", False)]
)
def test_tools_stay_in_the_prompt_whatever_the_choice(choice: str | None, native: bool) -> None:
    body = read(tools=[OFFER], tool_choice=choice)
    assert [tool.name for tool in body.request().tools] == ["f"]
    assert body.native is native


def test_a_named_tool_is_the_only_one_offered() -> None:
    other = {"type": "function", "function": {"name": "g"}}
    choice = {"type": "function", "function": {"name": "g"}}
    assert [t.name for t in request(tools=[OFFER, other], tool_choice=choice).tools] == ["g"]


def test_without_tools_nothing_is_native() -> None:
    assert not read(tools=None).native


def test_a_tool_without_parameters_takes_none() -> None:
    (tool,) = request(tools=[{"type": "function", "function": {"name": "g"}}]).tools
    assert tool.parameters == {"type": "object", "properties": {}}


def test_both_names_of_the_limit() -> None:
    assert read(max_tokens=5).limit == 5
    assert read(max_completion_tokens=6).limit == 6
    assert read().limit is None


def test_stops_are_one_or_many() -> None:
    assert read(stop="a").stops == ("a",)
    assert read(stop=["a", "b"]).stops == ("a", "b")
    assert read().stops == ()


def test_what_changes_nothing_is_accepted() -> None:
    read(temperature=0, top_p=0.3, seed=7, user="u", n=1, logprobs=False, metadata={"a": "b"})
    read(response_format={"type": "json_object"}, parallel_tool_calls=True, stream_options=None)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 0.7}, "temperature"),
        ({"temperature": 1}, "temperature"),
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"presence_penalty": 0.1}, "presence_penalty"),
        ({"logit_bias": {"50": 1}}, "logit_bias"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"functions": []}, "functions"),
        ({"frobnicate": 1}, "frobnicate"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
        ({"tool_choice": "perhaps"}, "tool_choice"),
    ],
)
def test_what_cannot_be_honoured_names_the_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read(**fields)
    assert caught.value.context == {"param": param}
    assert len(str(caught.value)) < 2000


def test_a_named_tool_that_is_not_offered() -> None:
    body = read(tools=[OFFER], tool_choice={"type": "function", "function": {"name": "g"}})
    with pytest.raises(BadRequest, match="'g'"):
        body.request()


@pytest.mark.parametrize("arguments", ["[1]", "{", '{"a": ' * 9000, "null"])
def test_a_past_call_must_hold_an_object(arguments: str) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    body = read(messages=[{"role": "assistant", "tool_calls": [call]}])
    with pytest.raises(BadRequest, match="JSON object"):
        body.request()


def test_a_number_that_json_cannot_say_is_refused() -> None:
    raw = json.dumps({"messages": [USER], "tools": [OFFER]}).replace('"object"', "NaN")
    with pytest.raises(BadRequest, match="'f'"):
        read_body(raw.encode()).request()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    ],
)
def test_what_is_no_json_object_is_refused(raw: bytes) -> None:
    with pytest.raises(BadRequest):
        read_body(raw)
