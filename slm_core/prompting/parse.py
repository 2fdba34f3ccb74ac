"""Reads a model's answer back into calls: the inverse of ``formats.py``.

Two views. ``strict`` accepts the track's exact format and its canonical refusal, with JSON
whitespace around, and nothing else. ``lenient`` also reads the habits listed in
``lenient.py``. A text that is right in the strict view reads the same in the lenient one.
No text raises.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from slm_core.prompting.formats import NO_CALL_JSON, NO_CALL_TEXT
from slm_core.prompting.json_text import JSON_SPACE, NotJson, decode_at
from slm_core.prompting.lenient import is_hermes_body, read_leniently
from slm_core.records import Call, FailureClass, ToolUse, Track, View

_REFUSAL = json.loads(NO_CALL_JSON)
_OPEN_TAG = re.compile(r'[ \t\r\n]*+<tool_call name="([A-Za-z0-9_.-]++)">[ \t\r\n]*+')
_CLOSE_TAG = re.compile(r"[ \t\r\n]*+</tool_call>")


class ParsedOutput(NamedTuple):
    """What an answer says, and what is wrong with how it says it."""

    calls: tuple[ToolUse, ...]
    parsed: bool
    """The view could read the text: as calls, or as a refusal."""
    no_call: bool
    """Read as a refusal; ``calls`` is then empty."""
    failure: FailureClass
    """The first of ``flags``, or NONE when the text could be read."""
    flags: tuple[FailureClass, ...]
    """All departures from the exact format, in the order of the enum."""


def parse_output(
    text: str, track: Track, *, view: View = "strict", finish_reason: str | None = None
) -> ParsedOutput:
    """Return the calls in ``text``; never raises, in time linear in its length.

    ``finish_reason`` ``length`` adds the flag TRUNCATED; a text that is complete all the
    same is still read.
    """
    cut = finish_reason == "length"
    calls = _read_strictly(text, track)
    if calls is not None:
        flags = (FailureClass.TRUNCATED,) if cut else ()
        return ParsedOutput(calls, True, not calls, FailureClass.NONE, flags)
    reading = read_leniently(text, track, cut=cut)
    if view == "lenient" and (reading.calls or reading.no_call):
        return ParsedOutput(reading.calls, True, reading.no_call, FailureClass.NONE, reading.flags)
    return ParsedOutput((), False, False, reading.flags[0], reading.flags)


def infer_track(text: str) -> Track | None:
    """Return the track whose exact format ``text`` is in, or None; each has its own refusal."""
    if _read_strictly(text, "structured") is not None:
        return "structured"
    if _read_strictly(text, "toolcall") is not None:
        return "toolcall"
    return None


def track_of(call: Call) -> Track | None:
    """Return the track of a call: declared, else read from its answer; None for free text."""
    if call.track is not None:
        return call.track
    return "toolcall" if call.tool_calls else infer_track(call.response or "")


def _read_strictly(text: str, track: Track) -> tuple[ToolUse, ...] | None:
    """Return the calls, none for a refusal; None when the text is not in the exact format."""
    try:
        return _structured(text) if track == "structured" else _toolcalls(text)
    except NotJson:
        return None


def _structured(text: str) -> tuple[ToolUse, ...] | None:
    body = text.strip(JSON_SPACE)
    value, end = decode_at(body)
    if end != len(body) or not _is_object(value) or set(value) != {"name", "arguments"}:
        return None
    if value == _REFUSAL:
        return ()
    if not isinstance(value["name"], str) or not _is_object(value["arguments"]):
        return None
    return (ToolUse(name=value["name"], arguments=value["arguments"]),)


def _toolcalls(text: str) -> tuple[ToolUse, ...] | None:
    body = text.strip(JSON_SPACE)
    if body == NO_CALL_TEXT:
        return ()
    calls: list[ToolUse] = []
    pos = 0
    while pos < len(body):
        opened = _OPEN_TAG.match(body, pos)
        if opened is None:
            return None
        # The decoder finds the end: a closing tag inside a JSON string does not count.
        arguments, end = decode_at(body, opened.end())
        closed = _CLOSE_TAG.match(body, end)
        if closed is None or not _is_object(arguments) or is_hermes_body(opened[1], arguments):
            return None
        calls.append(ToolUse(name=opened[1], arguments=arguments))
        pos = closed.end()
    return tuple(calls) or None


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)
