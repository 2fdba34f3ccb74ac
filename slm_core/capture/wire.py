"""Reads messages, tools and tool calls as applications and providers write them.

Both the OpenAI wire form and our records are understood, as dicts or as objects. Nothing is
dropped: what has no place of its own in a ``Call`` (images, tools that are not functions,
arguments that are not JSON) is kept as JSON text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


class Answer(NamedTuple):
    """The text of a turn and its tool calls, as JSON data."""

    text: str | None
    tool_calls: list[dict[str, Any]]


def read_messages(items: Iterable[Any]) -> list[dict[str, Any]]:
    """Return the turns as JSON data of ``Message``.

    A turn of an unknown role becomes a user turn with the JSON text of the whole.
    """
    return [_message(_plain(item)) for item in items]


def read_tools(items: Iterable[Any]) -> list[dict[str, Any]]:
    """Return the offered tools as JSON data of ``Tool``.

    Raises:
        ValueError: a tool's parameters hold NaN or an infinity.
    """
    return [_tool(_plain(item)) for item in items]


def read_answer(text: Any, calls: Iterable[Any]) -> Answer:
    """Return a turn's text and tool calls as JSON data.

    If a single call is not a name with a JSON object of arguments, all calls become text:
    an answer must not look right because its broken half is missing.
    """
    text = None if text is None else read_content(text)
    plain = [_plain(call) for call in calls]
    uses = [_use(call) for call in plain]
    if None in uses:
        return Answer("\n".join([*([text] if text else []), *map(_json_text, plain)]), [])
    return Answer(text, [use for use in uses if use is not None])


def read_content(content: Any) -> str:
    """Return a turn's content as text: text parts joined by line ends, anything else as JSON."""
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if isinstance(content, list | tuple):
        parts = [_plain(part) for part in content]
        texts = [_text_part(part) for part in parts]
        if None not in texts:
            return "\n".join(text for text in texts if text is not None)
        return _json_text(parts)
    return _json_text(_plain(content))


def _message(item: Any) -> dict[str, Any]:
    role = _ROLES.get(str(item.get("role"))) if isinstance(item, Mapping) else None
    if role is None:
        return {"role": "user", "content": _json_text(item)}
    calls = item.get("tool_calls") or ()
    if function_call := item.get("function_call"):
        calls = [function_call]
    if not calls:
        return {"role": role, "content": read_content(item.get("content"))}
    answer = read_answer(item.get("content"), calls)
    return {"role": role, "content": answer.text or "", "tool_calls": answer.tool_calls}


def _tool(item: Any) -> dict[str, Any]:
    function = item.get("function", item) if isinstance(item, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        kind = item.get("type") if isinstance(item, Mapping) else None
        return {"name": str(kind or "tool"), "description": _json_text(item)}
    parameters = function.get("parameters")
    if not _is_finite(parameters):
        raise ValueError(f"the parameters of tool {function['name']!r} hold NaN or an infinity")
    tool = {"name": function["name"], "description": function.get("description") or ""}
    return tool if parameters is None else {**tool, "parameters": parameters}


def _use(call: Any) -> dict[str, Any] | None:
    """Return a call as JSON data of ``ToolUse``; None when it is not one."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        return None
    name, arguments = function.get("name"), function.get("arguments")
    try:
        if isinstance(arguments, str):
            # Some servers write no arguments at all where there are none.
            arguments = json.loads(arguments) if arguments else {}
        if not isinstance(arguments, dict) or not _is_finite(arguments):
            return None
    except (ValueError, RecursionError):
        return None
    return {"name": name, "arguments": arguments} if name and isinstance(name, str) else None


def _text_part(part: Any) -> str | None:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type") == "text":
        text = part.get("text")
        return text if isinstance(text, str) else None
    return None


def _is_finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_finite, value))
    return True


def _plain(item: Any) -> Any:
    """Return the dict of a record or of an object of the provider's library."""
    dump = getattr(item, "model_dump", None)
    return item if dump is None else dump(exclude_unset=True)


def _json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
