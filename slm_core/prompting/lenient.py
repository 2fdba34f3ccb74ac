"""Finds the calls that a badly formatted answer means, and names what is wrong with it.

Reads any of: a Markdown fence, text around the call, Python literals, a self-closing tag,
arguments in an attribute, name and arguments inside the tag, foreign tags, bare JSON, other
keys, arguments as a JSON string, a missing closing tag. It guesses no value: what cannot be
read is no call. It looks at the first 65,536 characters, and gives up after 16 unreadable
pieces, so that hostile text costs no time.
"""

from __future__ import annotations

import html
import re
from typing import Any, NamedTuple

from slm_core.prompting.json_text import (
    JSON_SPACE,
    NotJson,
    decode_at,
    decode_python,
    span_end,
    unquote_at,
)
from slm_core.records import FailureClass, ToolUse, Track

MAX_CHARS = 65_536
MAX_UNREADABLE = 16
NAME_KEYS = ("name", "function", "tool", "tool_name", "function_name")
ARGUMENT_KEYS = ("arguments", "params", "parameters", "args", "input")

_MARK = re.compile(
    r"<(?P<close>/?)(?P<tag>(?:tool|func|invoke|call|json|response|xml)[\w.-]*)"
    r"""|(?P<json>\{\s*+["'}]|\[\s*+\{)""",
    re.IGNORECASE,
)
_ATTRIBUTE = re.compile(r"\s*+([\w.-]*+)\s*+=\s*+")
_BARE_VALUE = re.compile(r"[\w.-]++")
_TAG_END = re.compile(r"\s*+(/?)>")
_SPACE = re.compile(r"\s*+")
_FENCE = re.compile(r"```\w*")
_FOREIGN_MARK = re.compile(r"\[TOOL_CALLS\]|\bfunctools\b|<\|\w+\|>")


class Reading(NamedTuple):
    """What the text means, and all that is wrong with how it says it."""

    calls: tuple[ToolUse, ...]
    no_call: bool
    """The text plainly makes no call: prose, or a refusal in some form."""
    flags: tuple[FailureClass, ...]
    """In the order of the enum; never empty."""


def read_leniently(text: str, track: Track, *, cut: bool) -> Reading:
    """Read a text that is not in the exact format of ``track``.

    ``cut`` says that the model was stopped before its end.
    """
    reader = _Reader(text[:MAX_CHARS], track)
    reader.read()
    found = reader.flags | ({FailureClass.TRUNCATED} if cut else set())
    flags = tuple(flag for flag in FailureClass if flag in found)
    return Reading(tuple(reader.calls), reader.no_call and not cut, flags)


class _Reader:
    """One pass over one text, from mark to mark: a tag, or a bracket that may open JSON."""

    def __init__(self, text: str, track: Track) -> None:
        self.text = text
        self.track = track
        self.calls: list[ToolUse] = []
        self.flags: set[FailureClass] = set()
        self.no_call = False
        self._refused = False
        self._unreadable = 0
        self._rest: list[str] = []
        # What is wrong with JSON outside of tags: it matters only if no call is found.
        self._doubts: set[FailureClass] = set()
        self._open_tag: str | None = None
        self._open_tag_used = False

    def read(self) -> None:
        """Fill ``calls``, ``flags`` and ``no_call``."""
        pos = 0
        while self._unreadable < MAX_UNREADABLE and (mark := _MARK.search(self.text, pos)):
            self._rest.append(self.text[pos : mark.start()])
            if mark["json"]:
                pos = self._read_json(mark.start())
            elif mark["close"]:
                pos = self._read_closing_tag(mark)
            else:
                pos = self._read_opening_tag(mark)
        self._rest.append(self.text[pos:])
        self._settle_open_tag(FailureClass.TRUNCATED)
        self._judge_rest()

    def _read_json(self, start: int) -> int:
        """Read a bracket outside of tags, or inside one that names no tool."""
        found = self._value_at(start, self.flags if self._open_tag else self._doubts)
        if found is None:
            self._rest.append(self.text[start])
            return start + 1
        value, end = found
        taken = [self._take_envelope(v) for v in (value if isinstance(value, list) else [value])]
        if not any(taken):
            # Inside of something unreadable, an object is only a piece of it.
            self._doubts |= set() if self._unreadable else {FailureClass.WRONG_KEYS}
        elif self._open_tag == "tool_call":
            self.flags.add(FailureClass.HERMES_BODY)
        elif self.track == "structured" and isinstance(value, list):
            self.flags.add(FailureClass.WRONG_KEYS)
        elif self.track == "toolcall" and self._open_tag is None:
            self.flags.add(FailureClass.BARE_JSON)
        return end

    def _read_opening_tag(self, mark: re.Match[str]) -> int:
        self._settle_open_tag(FailureClass.MISSING_CLOSE)
        tag = mark["tag"].lower()
        if self.track == "structured" or tag != "tool_call":
            self.flags.add(FailureClass.FOREIGN_TAG)
        attributes, pos = self._attributes_at(mark.end())
        tag_end = _TAG_END.match(self.text, pos)
        if tag_end is None:
            self._unreadable += 1
            closed_later = self.text.find(">", pos) >= 0
            self.flags.add(FailureClass.BAD_JSON if closed_later else FailureClass.TRUNCATED)
            return pos
        self_closing = bool(tag_end[1])
        if self_closing:
            self.flags.add(FailureClass.SELF_CLOSING)
        else:
            self._open_tag, self._open_tag_used = tag, False
        name = _pop_first(attributes, ("", *NAME_KEYS))
        arguments = _pop_first(attributes, ARGUMENT_KEYS)
        if not isinstance(name, str):
            return tag_end.end()
        if arguments is None and not self_closing:
            return self._read_body(name, tag_end.end())
        if arguments is not None or attributes:
            self.flags.add(FailureClass.ATTRIBUTE_ARGUMENTS)
        self._add_call(name, attributes if arguments is None else _as_object(arguments))
        return tag_end.end()

    def _read_body(self, name: str, start: int) -> int:
        """Read what follows an opening tag that names its tool."""
        pos = _end_of(_SPACE, self.text, start)
        if self.text.startswith(("{", "["), pos):
            found = self._value_at(pos, self.flags)
            if found is None:
                return pos + 1
            value, end = found
            if is_hermes_body(name, value):
                self.flags.add(FailureClass.HERMES_BODY)
                self._take_envelope(value)
            else:
                self._add_call(name, value if isinstance(value, dict) else None)
            return end
        if self.text.startswith(('"', "'"), pos):
            try:
                value, end = unquote_at(self.text, pos)
            except NotJson:
                self._unreadable += 1
                return pos
            self.flags.add(FailureClass.DOUBLE_ENCODED)
            self._add_call(name, _as_object(value))
            return end
        if self.text.startswith("</", pos):
            self.flags.add(FailureClass.BAD_JSON)
            self._add_call(name, {})
        return pos

    def _read_closing_tag(self, mark: re.Match[str]) -> int:
        tag_end = _TAG_END.match(self.text, mark.end())
        end = tag_end.end() if tag_end else mark.end()
        if self._open_tag is None:
            self._rest.append(self.text[mark.start() : end])
        elif not self._open_tag_used:
            self.flags.add(FailureClass.BAD_JSON)
        elif tag_end is None or mark["tag"].lower() != self._open_tag:
            self.flags.add(FailureClass.MISSING_CLOSE)
        self._open_tag = None
        return end

    def _settle_open_tag(self, if_unused: FailureClass) -> None:
        """Note a tag that no closing tag followed."""
        if self._open_tag is not None:
            used = self._open_tag_used
            self.flags.add(FailureClass.MISSING_CLOSE if used else if_unused)
        self._open_tag = None

    def _judge_rest(self) -> None:
        """Say what the text around the calls is, or the whole text without a call."""
        rest = "".join(self._rest)
        if _FOREIGN_MARK.search(rest):
            self.flags.add(FailureClass.FOREIGN_TAG)
            rest = _FOREIGN_MARK.sub("", rest)
        if "```" in rest:
            self.flags.add(FailureClass.FENCE)
            rest = _FENCE.sub("", rest)
        rest = rest.strip(JSON_SPACE)
        if self.calls or self._refused:
            self.no_call = not self.calls
            if rest or self._doubts or (self.track == "structured" and len(self.calls) > 1):
                self.flags.add(FailureClass.EXTRA_TEXT)
        elif self._doubts:
            self.flags |= self._doubts
        elif rest.startswith(("{", "[")):
            self.flags.add(FailureClass.BAD_JSON)
        elif rest and not self.flags - {FailureClass.FENCE}:
            self.no_call = True
            self.flags.add(FailureClass.PROSE)
        elif not self.text.strip():
            self.flags.add(FailureClass.EMPTY)
        if not self.flags:
            # All could be read, so the tag itself is off: its spaces, quotes or capitals.
            self.flags.add(FailureClass.FOREIGN_TAG)

    def _value_at(self, start: int, faults: set[FailureClass]) -> tuple[Any, int] | None:
        """Return the JSON or Python value at ``start`` and its end; else note the fault."""
        try:
            return decode_at(self.text, start)
        except NotJson:
            pass
        try:
            end = span_end(self.text, start)
            if end is not None:
                value = decode_python(self.text[start:end])
                self.flags.add(FailureClass.PYTHON_LITERAL)
                return value, end
            faults.add(FailureClass.TRUNCATED)
        except NotJson:
            faults.add(FailureClass.BAD_JSON)
        self._unreadable += 1
        return None

    def _attributes_at(self, start: int) -> tuple[dict[str, Any], int]:
        """Return the attributes of a tag, ``<function=NAME>`` under the key ``""``."""
        attributes: dict[str, Any] = {}
        pos = start
        while match := _ATTRIBUTE.match(self.text, pos):
            value, end = self._attribute_value_at(match.end())
            if end == match.end():
                break
            attributes[match[1]], pos = value, end
        return attributes, pos

    def _attribute_value_at(self, start: int) -> tuple[Any, int]:
        quote = self.text[start : start + 1] if self.text.startswith(('"', "'"), start) else ""
        inner = start + len(quote)
        # JSON between quotes of its own kind ends where the JSON ends, not at the next quote.
        if self.text.startswith("{", inner):
            found = self._value_at(inner, set())
            if found and self.text.startswith(quote, found[1]):
                return found[0], found[1] + len(quote)
        if quote:
            try:
                value, end = unquote_at(self.text, start)
            except NotJson:
                return None, start
            return html.unescape(value), end
        end = _end_of(_BARE_VALUE, self.text, start)
        return self.text[start:end], end

    def _take_envelope(self, value: Any) -> bool:
        """Add the call of an object that holds name and arguments; False if it holds none."""
        if not isinstance(value, dict):
            return False
        keys = set(value)
        if isinstance(value.get("function"), dict):
            value = value["function"]
        name = next((value[k] for k in NAME_KEYS if k in value), "")
        given = next((value[k] for k in ARGUMENT_KEYS if k in value), None)
        arguments = _as_object(given)
        if isinstance(name, str) and name and arguments is not None:
            self._add_call(name, arguments)
        elif name is None and not arguments:
            self._refused = True
        else:
            return False
        if keys != {"name", "arguments"}:
            self.flags.add(FailureClass.WRONG_KEYS)
        if isinstance(given, str):
            self.flags.add(FailureClass.DOUBLE_ENCODED)
        return True

    def _add_call(self, name: str, arguments: dict[str, Any] | None) -> None:
        if arguments is None:
            self.flags.add(FailureClass.BAD_JSON)
            return
        self._open_tag_used = True
        self.calls.append(ToolUse(name=name, arguments=arguments))


def is_hermes_body(name: str, value: Any) -> bool:
    """Return whether the body of a tag that names its tool only wraps that name and arguments."""
    if not isinstance(value, dict) or len(value) != 2:
        return False
    repeats = any(value.get(key) == name for key in NAME_KEYS)
    return repeats and any(isinstance(value.get(key), dict) for key in ARGUMENT_KEYS)


def _as_object(value: Any) -> dict[str, Any] | None:
    """Return a JSON object, also one written as a string; None for anything else."""
    if isinstance(value, str):
        text = value.strip()
        try:
            value = decode_python(text) if text.startswith("{") else None
        except NotJson:
            return None
    return value if isinstance(value, dict) else None


def _pop_first(values: dict[str, Any], keys: tuple[str, ...]) -> Any:
    return next((values.pop(key) for key in keys if key in values), None)


def _end_of(pattern: re.Pattern[str], text: str, start: int) -> int:
    match = pattern.match(text, start)
    return match.end() if match else start
