"""Rows in the formats of other trainers: Hermes function calling and prompt/completion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from slm_core.prompting.formats import dump_json
from slm_core.prompting.prefix import ContextPrefix
from slm_core.prompting.render import compose
from slm_core.records import Example, Message, Tool, ToolUse

_SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt", "tool": "tool"}

_TOOLCALL_RULE = (
    "Call one or more of these functions when they serve the request. Write each call as "
    '<tool_call>\n{"name": NAME, "arguments": {...}}\n</tool_call>'
)
_STRUCTURED_RULE = (
    'Answer with one JSON object, {"name": NAME, "arguments": {...}}, and nothing else.'
)


def hermes_row(example: Example) -> dict[str, Any]:
    """Return the example as a ShareGPT conversation in the Hermes function-calling format.

    Columns as in ``NousResearch/hermes-function-calling-v1``: ``id``, ``conversations`` (turns
    with ``from`` and ``value``) and ``tools`` (JSON text); ``track`` is ours.
    """
    tools = dump_json([_function(tool) for tool in example.tools])
    own = [m.content for m in example.prompt if m.role == "system" and m.content]
    rule = _TOOLCALL_RULE if example.track == "toolcall" else _STRUCTURED_RULE
    system = "\n\n".join([*own, f"<tools>\n{tools}\n</tools>", rule])
    turns = [{"from": "system", "value": system}]
    turns += [_turn(message) for message in example.prompt if message.role != "system"]
    answer = (
        _hermes_calls(example.calls)
        if example.track == "toolcall" and example.calls
        else example.completion
    )
    turns.append({"from": "gpt", "value": answer})
    return {"id": example.id, "conversations": turns, "tools": tools, "track": example.track}


def prompt_completion_row(example: Example, prefix: ContextPrefix | None) -> dict[str, Any]:
    """Return the example as two lists of chat messages, ``prompt`` and ``completion``.

    The prompt holds the turns as our own renderer composes them, tools and prefix included.
    """
    turns = compose(example.prompt, example.tools, prefix)
    return {
        "prompt": [{"role": turn.role, "content": turn.content} for turn in turns],
        "completion": [{"role": "assistant", "content": example.completion}],
    }


def _turn(message: Message) -> dict[str, str]:
    value = message.content
    if message.role == "tool":
        value = f"<tool_response>\n{value}\n</tool_response>"
    if message.tool_calls:
        value = "\n".join(part for part in (value, _hermes_calls(message.tool_calls)) if part)
    return {"from": _SPEAKERS[message.role], "value": value}


def _hermes_calls(calls: Sequence[ToolUse]) -> str:
    return "\n".join(
        "<tool_call>\n"
        + dump_json({"name": call.name, "arguments": call.arguments})
        + "\n</tool_call>"
        for call in calls
    )


def _function(tool: Tool) -> dict[str, Any]:
    return {"type": "function", "function": tool.model_dump(mode="json")}
