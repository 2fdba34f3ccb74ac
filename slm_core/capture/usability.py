"""The cheap test whether a call may become an example."""

from __future__ import annotations

from slm_core.records import Call, DropReason

_CUT_OFF = ("length", "content_filter")
"""Finish reasons of a response that lacks its end."""


def usable(call: Call) -> str | None:
    """Return why ``call`` may not become an example (a ``DropReason``), None when it may.

    Looks at how the call went, not at whether the response is in its track's exact format;
    the dataset stage's own filter, which does both, may take this one's place.
    """
    if not call.success:
        return DropReason.FAILED.value
    if not call.complete:
        return DropReason.INCOMPLETE.value
    if not call.tool_calls and not (call.response or "").strip():
        return DropReason.NO_RESPONSE.value
    if call.source != "llm":
        return DropReason.SLM_ANSWER.value
    if not any(message.content.strip() for message in call.messages):
        return DropReason.NO_PROMPT.value
    if call.finish_reason in _CUT_OFF:
        return DropReason.TRUNCATED.value
    return None
