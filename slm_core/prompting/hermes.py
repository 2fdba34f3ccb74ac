"""Conversations in the Hermes function-calling format, which other trainers read.

Columns as in ``NousResearch/hermes-function-calling-v1``. A call is written as
``<tool_call>``, one JSON object, ``</tool_call>``, each on a line of its own; an earlier answer
in the tag of our ``toolcall`` track is written so too, for a row must not teach two formats.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from slm_core.prompting.formats import dump_json
from slm_core.prompting.parse import parse_output
from slm_core.records import Message, Tool, ToolUse, Track

_SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt", "tool": "tool"}

_RULES: dict[Track, str] = {
    "toolcall": "Call one or more of these functions when they serve the request. Write each call "
    'as <tool_call>\n{"name": NAME, "arguments": {...}}\n</tool_call>',
    "structured": 'Answer with one JSON object, {"name": NAME, "arguments": {...}}, and nothing '
    "else.",
}


def hermes_conversation(
    row_id: str,
    prompt: Sequence[Message],
    tools: Sequence[Tool],
    answer: Message,
    track: Track | None,
) -> dict[str, Any]:
    """Return one row: ``id``, ``conversations`` (turns with ``from`` and ``value``) and ``tools``.

    ``tools`` is JSON text, and stands in the system turn too. ``track`` is a column of ours; it
    is None where the answer is free text.

    Raises:
        ValueError: a tool or an argument holds what JSON does not, such as NaN.
    """
    written = dump_json([_function(tool) for tool in tools])
    system = [turn.content for turn in prompt if turn.role == "system" and turn.content]
    if tools or track is not None:
        system += [f"<tools>\n{written}\n</tools>", _RULES[track or "toolcall"]]
    turns = [{"from": "system", "value": "\n\n".join(system)}] if system else []
    turns += [_turn(turn) for turn in (*prompt, answer) if turn.role != "system"]
    return {"id": row_id, "conversations": turns, "tools": written, "track": track}


def _turn(message: Message) -> dict[str, str]:
    text, calls = message.content, message.tool_calls
    if message.role == "tool":
        text = f"<tool_response>\n{text}\n</tool_response>"
    if message.role == "assistant" and not calls:
        calls = parse_output(text, "toolcall").calls
        text = "" if calls else text
    value = "\n".join(part for part in (text, *map(_call, calls)) if part)
    return {"from": _SPEAKERS[message.role], "value": value}


def _call(use: ToolUse) -> str:
    return f"<tool_call>\n{dump_json({'name': use.name, 'arguments': use.arguments})}\n</tool_call>"


def _function(tool: Tool) -> dict[str, Any]:
    return {"type": "function", "function": tool.model_dump(mode="json")}
