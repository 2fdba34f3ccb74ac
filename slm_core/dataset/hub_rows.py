"""How one row of a public function-calling set reads as calls.

What it refuses: rows without a call, tools that are not JSON, types it does not know.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from slm_core.prompting.formats import render_completion
from slm_core.records import Call, Message, Role, Tool, ToolUse, Track, content_id, sha256_hex

_TOOL_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
_ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "gpt": "assistant",
    "tool": "tool",
}
_TYPES = {
    "str": "string",
    "string": "string",
    "int": "integer",
    "integer": "integer",
    "float": "number",
    "number": "number",
    "bool": "boolean",
    "boolean": "boolean",
    "list": "array",
    "array": "array",
    "tuple": "array",
    "set": "array",
    "dict": "object",
    "object": "object",
}


class UnreadableRow(ValueError):
    """A row cannot be read as calls; the text says why and names no content."""


def hermes_calls(row: Mapping[str, Any], track: Track, agent: str) -> list[Call]:
    """Return one call for each assistant turn of a Hermes row that calls a tool.

    The system turn that explains the Hermes format is left out: our renderer writes its own.

    Raises:
        UnreadableRow: see the text.
    """
    tools = tuple(_function(tool) for tool in _json_list(row.get("tools"), "tools"))
    key = _key(row)
    found: list[Call] = []
    history: list[Message] = []
    for turn in row.get("conversations") or []:
        role = _ROLES.get(str(turn.get("from")))
        if role is None:
            raise UnreadableRow("unknown speaker in conversations")
        text = str(turn.get("value") or "")
        if role == "system" and "<tools>" in text:
            continue
        uses = tuple(map(_tool_use, _TOOL_CALL.findall(text))) if role == "assistant" else ()
        if uses:
            found.append(_call(agent, key, len(found), history, tools, uses, track, row))
            text = _TOOL_CALL.sub("", text).strip()
        history.append(Message(role=role, content=text, tool_calls=uses))
    if not found:
        raise UnreadableRow("no assistant turn calls a tool")
    return found


def xlam_calls(row: Mapping[str, Any], track: Track, agent: str) -> list[Call]:
    """Return the one call of an xLAM row; an empty list of answers is a refusal.

    Raises:
        UnreadableRow: see the text.
    """
    query = row.get("query")
    if not isinstance(query, str) or not query.strip():
        raise UnreadableRow("no query")
    tools = tuple(_xlam_tool(tool) for tool in _json_list(row.get("tools"), "tools"))
    uses = tuple(_use_of(answer) for answer in _json_list(row.get("answers"), "answers"))
    question = [Message(role="user", content=query)]
    return [_call(agent, _key(row), 0, question, tools, uses, track, row)]


def _call(
    agent: str,
    key: str,
    number: int,
    messages: Sequence[Message],
    tools: tuple[Tool, ...],
    uses: tuple[ToolUse, ...],
    track: Track,
    row: Mapping[str, Any],
) -> Call:
    domain = str(row.get("category") or "")
    return Call(
        id=content_id("hub", [agent, key, number]),
        agent_type="hub",
        agent_name=agent,
        model=agent,
        conversation_id=f"{agent}-{key}",
        messages=tuple(messages),
        tools=tools,
        track=track,
        response=None if uses else render_completion(track, ()),
        tool_calls=uses,
        success=True,
        tags={"domain": domain} if domain else {},
    )


def _key(row: Mapping[str, Any]) -> str:
    """Return the row's own id, or one that follows from its content."""
    given = row.get("id")
    return str(given) if given is not None else sha256_hex(json.dumps(row, default=str))[:16]


def _json_list(value: Any, column: str) -> list[dict[str, Any]]:
    """Return a column that holds a list, written as JSON text or as the list itself."""
    try:
        items = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        raise UnreadableRow(f"{column} is not JSON") from None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise UnreadableRow(f"{column} is not a list of objects")
    return items


def _function(tool: Mapping[str, Any]) -> Tool:
    body = tool.get("function", tool)
    if not isinstance(body, Mapping) or not isinstance(body.get("name"), str):
        raise UnreadableRow("a tool has no name")
    parameters = body.get("parameters") or {"type": "object", "properties": {}}
    if not isinstance(parameters, dict):
        raise UnreadableRow("a tool's parameters are not an object")
    description = str(body.get("description") or "")
    return Tool(name=body["name"], description=description, parameters=parameters)


def _tool_use(body: str) -> ToolUse:
    """Return the call in the body of a Hermes tag: JSON, or the Python literal often found."""
    try:
        value = json.loads(body)
    except ValueError:
        try:
            value = ast.literal_eval(body)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise UnreadableRow("a tool call is neither JSON nor a Python literal") from None
    return _use_of(value)


def _use_of(value: Any) -> ToolUse:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise UnreadableRow("a call has no name")
    arguments = value.get("arguments", {})
    if not isinstance(arguments, dict) or not all(isinstance(key, str) for key in arguments):
        raise UnreadableRow("a call's arguments are not an object")
    return ToolUse(name=value["name"], arguments=arguments)


def _xlam_tool(tool: Mapping[str, Any]) -> Tool:
    """Return an xLAM tool with its Python types as JSON Schema.

    A parameter is required unless its type says ``optional`` or it has a default.
    """
    given = tool.get("parameters") or {}
    if not isinstance(given, dict) or not all(isinstance(p, dict) for p in given.values()):
        raise UnreadableRow("a tool's parameters are not an object")
    properties: dict[str, Any] = {}
    required: list[str] = []
    for name, parameter in given.items():
        kind, optional, _ = str(parameter.get("type", "")).partition(", optional")
        schema = python_type_schema(kind)
        schema |= {key: parameter[key] for key in ("description", "default") if key in parameter}
        properties[name] = schema
        if not optional and "default" not in parameter:
            required.append(name)
    parameters = {"type": "object", "properties": properties, "required": required}
    return _function({**tool, "parameters": parameters})


def python_type_schema(text: str) -> dict[str, Any]:
    """Return the JSON Schema of a Python type as xLAM writes it, such as ``List[int]``.

    Raises:
        UnreadableRow: the type is not one that JSON values have.
    """
    head, bracket, inside = text.strip().partition("[")
    head = head.strip().lower()
    if bracket and not inside.endswith("]"):
        raise UnreadableRow("unknown parameter type")
    parts = _split_types(inside[:-1]) if bracket else []
    if head == "any":
        return {}
    if head == "optional" and len(parts) == 1:
        return python_type_schema(parts[0])
    if head == "union" and parts:
        return {"anyOf": [python_type_schema(part) for part in parts]}
    if head not in _TYPES:
        raise UnreadableRow("unknown parameter type")
    schema: dict[str, Any] = {"type": _TYPES[head]}
    if head in ("list", "set") and len(parts) == 1:
        schema["items"] = python_type_schema(parts[0])
    return schema


def _split_types(text: str) -> list[str]:
    """Split at the commas that stand in no bracket."""
    parts = [""]
    depth = 0
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
