"""One call to one example, or the reason why not.

The filters run in a fixed order and the first that objects names the reason, so counts of
two builds can be compared. A canonical refusal is an answer like any other and is kept.
"""

from __future__ import annotations

from typing import NamedTuple

from slm_core.dataset.schemas import Objection, object_to_calls, object_to_tools
from slm_core.prompting.formats import render_completion
from slm_core.prompting.parse import parse_output, track_of
from slm_core.records import (
    Call,
    DropReason,
    Example,
    FailureClass,
    ToolUse,
    Track,
    canonical_json,
    content_id,
)

_CUT_OFF = ("length", "content_filter")
"""Finish reasons of a response that lacks its end."""


class Answer(NamedTuple):
    """What a call's response says."""

    track: Track
    calls: tuple[ToolUse, ...]


def drop_reason(call: Call) -> tuple[DropReason, str] | None:
    """Return why ``call`` cannot become an example, with a detail; None when it can."""
    answer = _read(call)
    return answer if isinstance(answer, Objection) else None


def why_unusable(call: Call) -> str | None:
    """Return the reason of ``drop_reason`` as text; None when ``call`` is usable.

    This is the one meaning of "usable": the store keeps it with each call, and claims count it.
    """
    dropped = drop_reason(call)
    return dropped[0].value if dropped else None


def examine(call: Call) -> Example | Objection:
    """Return the example made from ``call``, or the objection to it.

    The completion is in the track's canonical form. The id depends on question and answer
    alone: the same conversation text gives the same id.
    """
    answer = _read(call)
    if isinstance(answer, Objection):
        return answer
    completion = render_completion(answer.track, answer.calls)
    content = {
        "track": answer.track,
        "prompt": [m.model_dump(mode="json") for m in call.messages],
        "tools": [t.model_dump(mode="json") for t in call.tools],
        "completion": completion,
    }
    return Example(
        id=content_id("ex", content),
        track=answer.track,
        prompt=call.messages,
        tools=call.tools,
        completion=completion,
        calls=answer.calls,
        conversation_id=call.conversation_id,
        domain=call.tags.get("domain", ""),
        source_call_id=call.id,
        tags={"agent_name": call.agent_name, "agent_type": call.agent_type, **call.tags},
    )


def _read(call: Call) -> Answer | Objection:
    answer = _object_to_call(call) or object_to_tools(call.tools) or _parse(call)
    if isinstance(answer, Objection):
        return answer
    return object_to_calls(answer.track, call.tools, answer.calls) or answer


def _object_to_call(call: Call) -> Objection | None:
    """Object to calls that hold no answer of the teacher, or no question."""
    if not call.success:
        return Objection(DropReason.FAILED, call.error or "")
    if not call.complete:
        return Objection(DropReason.INCOMPLETE, "")
    if not call.tool_calls and not (call.response or "").strip():
        return Objection(DropReason.NO_RESPONSE, "")
    if call.source != "llm":
        return Objection(DropReason.SLM_ANSWER, f"model {call.model}")
    if not any(message.content.strip() for message in call.messages):
        return Objection(DropReason.NO_PROMPT, "no message holds text")
    try:
        # Python mode: the JSON mode of pydantic would write NaN as null.
        canonical_json(call.model_dump(exclude={"created_at"})).encode("utf-8")
    except (ValueError, RecursionError) as error:  # a UnicodeEncodeError is a ValueError
        return Objection(DropReason.ENCODING, str(error))
    return None


def _parse(call: Call) -> Answer | Objection:
    """Read the response strictly; native tool calls take the way through the canonical text."""
    text = call.response or ""
    track = track_of(call)
    if track is None:
        return Objection(DropReason.NO_TRACK, "neither declared nor recognised")
    if call.tool_calls:
        if track == "structured" and len(call.tool_calls) > 1:
            return Objection(DropReason.BAD_FORMAT, str(FailureClass.CALL_COUNT))
        text = render_completion(track, call.tool_calls)
    parsed = parse_output(text, track, view="strict", finish_reason=call.finish_reason)
    if call.finish_reason in _CUT_OFF or parsed.failure == FailureClass.TRUNCATED:
        return Objection(DropReason.TRUNCATED, f"finish_reason {call.finish_reason}")
    if not parsed.parsed:
        return Objection(DropReason.BAD_FORMAT, str(parsed.failure))
    return Answer(track, parsed.calls)
