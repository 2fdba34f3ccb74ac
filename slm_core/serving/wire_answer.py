"""Writes answers, streamed or whole, and errors as the ``openai`` client reads them."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any

from slm_core.backends.base import Completion
from slm_core.prompting.parse import parse_output
from slm_core.records import ToolUse


def answer_message(completion: Completion, native: bool) -> tuple[dict[str, Any], str]:
    """Return the assistant's message and the finish reason.

    With ``native``, a text that is exactly in the ``toolcall`` format becomes tool calls.
    """
    calls = parse_output(completion.text, "toolcall").calls if native else ()
    if calls:
        message = {"role": "assistant", "content": None, "tool_calls": _wire_calls(calls)}
        return message, "tool_calls"
    return {"role": "assistant", "content": completion.text}, completion.finish_reason


def chat_completion(head: dict[str, Any], completion: Completion, native: bool) -> dict[str, Any]:
    """Return the body of a whole answer."""
    message, reason = answer_message(completion, native)
    choice = {"index": 0, "message": {"refusal": None, **message}, "finish_reason": reason}
    return {
        **head,
        "object": "chat.completion",
        "choices": [{**choice, "logprobs": None}],
        "usage": usage(completion),
    }


def chunk(head: dict[str, Any], delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    """Return one piece of a streamed answer."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
    return {**head, "object": "chat.completion.chunk", "choices": [choice]}


def whole_as_chunks(
    head: dict[str, Any], completion: Completion, native: bool, with_usage: bool
) -> Iterator[dict[str, Any]]:
    """Yield an answer that is there as a whole as the pieces of a stream."""
    message, reason = answer_message(completion, native)
    yield chunk(head, {"role": "assistant", "content": ""})
    if calls := message.get("tool_calls"):
        yield chunk(head, calls_delta(calls))
    else:
        yield chunk(head, {"content": message["content"]})
    yield chunk(head, {}, reason)
    if with_usage:
        yield usage_chunk(head, completion)


def calls_delta(calls: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the tool calls of a message as the delta that streams them at once."""
    return {"tool_calls": [{"index": at, **call} for at, call in enumerate(calls)]}


def usage_chunk(head: dict[str, Any], completion: Completion) -> dict[str, Any]:
    """Return the last piece of a stream whose caller asked for the usage."""
    return {**head, "object": "chat.completion.chunk", "choices": [], "usage": usage(completion)}


def usage(completion: Completion) -> dict[str, int]:
    """Return the tokens read and written."""
    read, written = completion.prompt_tokens, completion.completion_tokens
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
    }


def answer_head(model: str, fingerprint: str) -> dict[str, Any]:
    """Return the fields that all pieces of one answer share."""
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": fingerprint,
    }


def error_body(
    message: str,
    *,
    kind: str = "invalid_request_error",
    code: str | None = None,
    param: str | None = None,
) -> dict[str, Any]:
    """Return the body of an error as the ``openai`` client reads it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def may_become_call(text: str) -> bool:
    """Return whether ``text``, the start of an answer, may still be a tool call as a whole."""
    start = text.lstrip()
    return start.startswith("<tool_call") or "<tool_call".startswith(start)


def _wire_calls(calls: Sequence[ToolUse]) -> list[dict[str, Any]]:
    return [
        {
            "id": f"call_{secrets.token_hex(12)}",
            "type": "function",
            "function": {
                "name": call.name,
                "arguments": json.dumps(call.arguments, ensure_ascii=False),
            },
        }
        for call in calls
    ]
