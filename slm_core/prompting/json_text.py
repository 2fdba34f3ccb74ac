"""Reads JSON out of model text: strictly, or from Python literals.

The strict reader refuses what ``json`` lets pass and other programs choke on: NaN,
infinities, ``1e999``, repeated keys, lone surrogates, and nesting deeper than 100. Nothing
here runs code, and every function takes time linear in the length of its text.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

JSON_SPACE = " \t\r\n"
"""The only white space that JSON knows."""

MAX_DEPTH = 100
"""Brackets inside brackets; a tool call needs a handful, deeper text breaks serializers."""


class NotJson(ValueError):
    """The text at that place is not a JSON value."""


def decode_at(text: str, start: int = 0) -> tuple[Any, int]:
    """Return the JSON value that begins at ``start`` and the index after it.

    Raises:
        NotJson: there is none, or it holds NaN, an infinity, a repeated key, a lone
            surrogate or too deep a nesting.
    """
    try:
        value, end = _DECODER.raw_decode(text, start)
        if not text.isascii() or text.find("\\u", start, end) >= 0:
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise NotJson(str(error)) from None
    brackets = text.count("{", start, end) + text.count("[", start, end)
    if brackets > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise NotJson(f"nested deeper than {MAX_DEPTH}")
    return value, end


def decode_python(literal: str) -> Any:
    """Return the value of a Python dict or list literal, which may be mixed with JSON.

    Quotes of both kinds, ``True``, ``False``, ``None`` and trailing commas are read; the
    literal is rewritten as JSON, never evaluated.

    Raises:
        NotJson: the rewritten text is not JSON.
    """
    rewritten = _PYTHON_TOKEN.sub(_as_json, literal)
    value, end = decode_at(rewritten)
    if end != len(rewritten):
        raise NotJson("text after the literal")
    return value


def span_end(text: str, start: int) -> int | None:
    """Return the index after the bracket that closes the one at ``start``; None if none does.

    Brackets inside quoted strings do not count.

    Raises:
        NotJson: nested too deep.
    """
    depth = 0
    for match in _BRACKET_TOKEN.finditer(text, start):
        token = match[0]
        if token in "{[":
            depth += 1
        elif token in "}]":
            depth -= 1
            if depth == 0:
                return match.end()
        if depth > MAX_DEPTH:
            raise NotJson(f"nested deeper than {MAX_DEPTH}")
    return None


def unquote_at(text: str, start: int) -> tuple[str, int]:
    """Return the quoted string (either quote) that begins at ``start``, and the index after it.

    Raises:
        NotJson: no complete string stands there.
    """
    match = _STRING.match(text, start)
    if match is None:
        raise NotJson("not a string")
    value, _ = decode_at(_as_json(match))
    return value, match.end()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level := [v for v in level if isinstance(v, dict | list)]:
        level = [c for v in level for c in (v.values() if isinstance(v, dict) else v)]
        depth += 1
    return depth


def _as_json(match: re.Match[str]) -> str:
    token = match[0]
    if token[0] in "\"'":
        return '"' + _ESCAPE.sub(_json_escape, token[1:-1]) + '"'
    return _WORDS[token]


def _json_escape(match: re.Match[str]) -> str:
    escape = match[0]
    if escape == '"':
        return '\\"'
    if escape == "\\'":
        return "'"
    if escape.startswith("\\x"):
        return "\\u00" + escape[2:]
    # Python keeps the backslash of an escape that it does not know.
    return escape if escape[1] in '"\\/bfnrtu' else "\\" + escape


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_refuse)
_WORDS = {"True": "true", "False": "false", "None": "null", ",": ""}
# Possessive repeats (*+) never backtrack, which keeps hostile text linear.
_DOUBLE = r'"[^"\\]*+(?:\\.[^"\\]*+)*+'
_SINGLE = r"'[^'\\]*+(?:\\.[^'\\]*+)*+"
_STRING = re.compile(rf'{_DOUBLE}"|{_SINGLE}\'', re.DOTALL)
# An unclosed string runs to the end of the text, so that it is looked at only once.
_BRACKET_TOKEN = re.compile(rf'{_DOUBLE}"?|{_SINGLE}\'?|[{{}}\[\]]', re.DOTALL)
_PYTHON_TOKEN = re.compile(
    rf'{_DOUBLE}"|{_SINGLE}\'|\b(?:True|False|None)\b|,(?=\s*+[}}\]])', re.DOTALL
)
_ESCAPE = re.compile(r'\\x[0-9a-fA-F]{2}|\\.|"', re.DOTALL)
