"""Reads calls that other systems left in the spool folder as JSON lines."""

from __future__ import annotations

import json
from datetime import UTC
from typing import Any

from slm_core.capture.wire import read_answer, read_content, read_messages, read_tools
from slm_core.records import Call, sha256_hex

_RENAMED = {"model_used": "model", "assistant_response": "response", "execution_time": "seconds"}


def read_line(line: bytes) -> Call:
    """Return the call on a line of JSON.

    The keys are those of ``Call`` or the arguments of ``capture_call``, messages and tools in
    either form. Without ``id`` the line's hash is the id, so that a file read twice adds
    nothing; without ``conversation_id`` the call is a conversation of its own; ``success``
    defaults to whether there is an answer; a time without zone is UTC.

    Raises:
        ValueError: the line is not JSON, or not a call.
    """
    data = json.loads(line, parse_constant=_refuse_constant)
    if not isinstance(data, dict):
        raise ValueError("not a JSON object")
    for old, new in _RENAMED.items():
        if old in data:
            data.setdefault(new, data.pop(old))
    data.setdefault("id", f"import-{sha256_hex(line)[:32]}")
    data.setdefault("conversation_id", data["id"])
    data["messages"] = _question(data)
    if "tools" in data:
        data["tools"] = read_tools(data["tools"] or ())
    answer = read_answer(data.get("response"), data.get("tool_calls") or ())
    data["response"], data["tool_calls"] = answer
    data.setdefault("success", answer.text is not None or bool(answer.tool_calls))
    call = Call.model_validate(data)
    if call.created_at.tzinfo is None:
        call = call.model_copy(update={"created_at": call.created_at.replace(tzinfo=UTC)})
    return call


def _question(data: dict[str, Any]) -> list[dict[str, Any]]:
    system, user = data.pop("system_prompt", None), data.pop("user_query", None)
    question = read_messages(data.get("messages") or ())
    if system is not None:
        question.insert(0, {"role": "system", "content": read_content(system)})
    if user is not None:
        question.append({"role": "user", "content": read_content(user)})
    return question


def _refuse_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
