"""The exact text of tools in a prompt and of calls in an answer.

Two tracks. ``structured``: one raw JSON object ``{"name": ..., "arguments": {...}}``.
``toolcall``: one ``<tool_call name="TOOL">{arguments}</tool_call>`` per call, one a line.
Both are written here and nowhere else; ``parse.py`` reads them back.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from slm_core.records import Tool, ToolUse, Track

FORMAT_VERSION = 1
"""Part of the prompt hash: raise it with any change of the text written here."""

NO_CALL_TEXT = "No tool fits this request."
"""The canonical answer of a row that wants no call, on the ``toolcall`` track."""

NO_CALL_JSON = '{"name": null, "arguments": {}}'
"""The canonical answer of a row that wants no call, on the ``structured`` track."""


def dump_json(value: Any) -> str:
    """Return JSON as the formats write it: one line, ``", "`` and ``": "``, UTF-8 kept."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def render_tools(tools: Sequence[Tool]) -> str:
    """Return the tools as a ``<tools>`` block, one JSON object a line; empty without tools."""
    if not tools:
        return ""
    lines = [
        dump_json({"name": t.name, "description": t.description, "parameters": t.parameters})
        for t in tools
    ]
    return "\n".join(["<tools>", *lines, "</tools>"])


def render_completion(track: Track, calls: Sequence[ToolUse]) -> str:
    """Return the canonical answer that makes ``calls``; no calls give the refusal.

    Raises:
        ValueError: more than one call on the ``structured`` track, which holds exactly one.
    """
    if track == "structured":
        if len(calls) > 1:
            raise ValueError(f"the structured track holds one call, got {len(calls)}")
        if not calls:
            return NO_CALL_JSON
        return dump_json({"name": calls[0].name, "arguments": calls[0].arguments})
    if not calls:
        return NO_CALL_TEXT
    return "\n".join(
        f'<tool_call name="{call.name}">{dump_json(call.arguments)}</tool_call>' for call in calls
    )
