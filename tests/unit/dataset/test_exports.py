"""Rows for other trainers."""

from __future__ import annotations

import json

from slm_core.dataset.examples import examine
from slm_core.dataset.exports import hermes_row, prompt_completion_row
from slm_core.dataset.hub_rows import hermes_calls
from slm_core.prompting.formats import NO_CALL_TEXT
from slm_core.prompting.prefix import PREFIXES
from slm_core.records import Message, ToolUse

OSLO = ToolUse(name="get_weather", arguments={"city": "Oslo"})
RIO = ToolUse(name="get_time", arguments={"city": "Rio"})


def test_a_conversation_keeps_its_turns_in_hermes_form(make_call):
    example = examine(
        make_call(
            messages=(
                Message(role="system", content="You help."),
                Message(role="user", content="Weather?"),
                Message(role="assistant", content="I look.", tool_calls=(OSLO,)),
                Message(role="tool", content='{"degrees": 3}'),
                Message(role="user", content="And the time?"),
            ),
            tool_calls=(RIO, OSLO),
        )
    )

    row = hermes_row(example)

    assert [turn["from"] for turn in row["conversations"]] == [
        "system",
        "human",
        "gpt",
        "tool",
        "human",
        "gpt",
    ]
    system, _, looked, result, _, answer = (turn["value"] for turn in row["conversations"])
    tools = json.loads(row["tools"])
    assert [tool["function"]["name"] for tool in tools] == ["get_weather", "get_time"]
    assert all(tool["type"] == "function" for tool in tools)
    assert system.startswith("You help.")
    assert row["tools"] in system
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    assert looked == f"I look.\n{call}"
    assert result == '<tool_response>\n{"degrees": 3}\n</tool_response>'
    assert answer.endswith(call)
    assert answer.count("<tool_call>") == 2


def test_earlier_answers_in_our_own_tag_are_written_as_hermes_does(make_call):
    own = '<tool_call name="get_weather">{"city": "Oslo"}</tool_call>'
    turns = (
        Message(role="user", content="Weather?"),
        Message(role="assistant", content=own),
        Message(role="user", content=f"What is {own}?"),
    )

    row = hermes_row(examine(make_call(messages=turns, tool_calls=(RIO,))))

    _, _, answered, asked, _ = (turn["value"] for turn in row["conversations"])
    body = '{"name": "get_weather", "arguments": {"city": "Oslo"}}'
    assert answered == f"<tool_call>\n{body}\n</tool_call>"
    assert asked == f"What is {own}?"


def test_our_own_reader_finds_the_calls_of_an_exported_row(make_call):
    example = examine(make_call(tool_calls=(RIO, OSLO)))

    (call,) = hermes_calls(hermes_row(example), "toolcall", "ours")

    assert call.tool_calls == (RIO, OSLO)
    assert call.tools == example.tools
    assert [turn.role for turn in call.messages] == ["user"]


def test_structured_answers_and_refusals_stay_as_they_are(make_call):
    structured = examine(make_call(track="structured", tool_calls=(OSLO,)))
    refusal = examine(make_call(response=NO_CALL_TEXT))

    assert hermes_row(structured)["conversations"][-1]["value"] == structured.completion
    assert hermes_row(refusal)["conversations"][-1]["value"] == NO_CALL_TEXT


def test_prompt_and_completion_are_messages_as_our_renderer_composes_them(make_call):
    example = examine(make_call())

    bare = prompt_completion_row(example, None)
    prefixed = prompt_completion_row(example, PREFIXES["compact"])

    assert [m["role"] for m in bare["prompt"]] == ["system", "user"]
    assert bare["prompt"][0]["content"].startswith("You help.\n\n<tools>")
    assert prefixed["prompt"][0]["content"].startswith(PREFIXES["compact"].text)
    assert bare["completion"] == [{"role": "assistant", "content": example.completion}]
