"""Turn a value into JSON that may leave the machine: small, plain, free of text and secrets.

A span carries ids, paths, hashes, counts and metrics. Prompts and answers stay in the store,
so a record that holds text (a call, an example, a case) is replaced by its name; a value under
a secret's key, and a password inside a URL, are replaced too. Nothing here raises: a value
that cannot be said becomes a placeholder, because tracing never stops a run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr

from slm_core.errors import SlmError
from slm_core.records import Call, CaseResult, Example, Message, Metric, Quarantined, ToolUse

MAX_TEXT = 1_000
"""Longest string kept, in characters."""
MAX_ITEMS = 200
"""Most items kept of one list or mapping."""
MAX_DEPTH = 8
"""Deepest nesting kept."""

_HOLDS_TEXT = (Call, CaseResult, Example, Message, Quarantined, ToolUse)
_SECRET_KEY = re.compile(
    r"(^|[_.-])(secret|password|passwd|authorization|credentials?|api_?key|access_?token"
    r"|private_?key|secret_?key)([_.-]|$)",
    re.IGNORECASE,
)
_SECRET_TEXT = re.compile(
    r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"  # user:password@ in a URL
    r"|\b(?:sk|pk|rk)-[A-Za-z0-9_-]{8,}"  # provider and Langfuse keys
    r"|\b(?:Bearer|Basic)\s+[A-Za-z0-9+/._=-]{8,}"
)
REMOVED = "[removed]"


def clean_text(text: str) -> str:
    """Return ``text`` without keys and passwords, at most ``MAX_TEXT`` characters of it."""
    text = text.encode("utf-8", "replace").decode("utf-8")  # lone surrogates are not UTF-8
    text = _SECRET_TEXT.sub(REMOVED, text)
    if len(text) <= MAX_TEXT:
        return text
    return f"{text[:MAX_TEXT]}… ({len(text):,} characters)"


def clean(value: Any, depth: int = 0) -> Any:
    """Return ``value`` as plain JSON data that is safe to send."""
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Path):
        return clean_text(str(value))
    if isinstance(value, SecretStr):
        return REMOVED
    if isinstance(value, _HOLDS_TEXT):
        return f"[{type(value).__name__} left out]"
    if depth >= MAX_DEPTH:
        return "[too deep]"
    if isinstance(value, BaseModel):
        value = {name: getattr(value, name) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        return _clean_mapping(value, depth)
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value, key=repr) if isinstance(value, set | frozenset) else list(value)
        kept = [clean(item, depth + 1) for item in items[:MAX_ITEMS]]
        return kept + _left_out(len(items))
    return f"[{type(value).__name__} left out]"


def _clean_mapping(mapping: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key, value in list(mapping.items())[:MAX_ITEMS]:
        name = clean_text(str(clean(key)))
        plain[name] = REMOVED if _SECRET_KEY.search(name) else clean(value, depth + 1)
    if len(mapping) > MAX_ITEMS:
        plain["…"] = _left_out(len(mapping))[0]
    return plain


def _left_out(size: int) -> list[str]:
    return [f"… ({size:,} items)"] if size > MAX_ITEMS else []


def clean_metrics(metrics: Mapping[str, Metric | float | int | None]) -> dict[str, dict[str, Any]]:
    """Return each metric as ``value`` and, where known, ``n``, ``low`` and ``high``.

    A metric that is None or not finite is missing, and stays missing.
    """
    plain: dict[str, dict[str, Any]] = {}
    for name, metric in metrics.items():
        numbers = (
            metric.model_dump(mode="python") if isinstance(metric, Metric) else {"value": metric}
        )
        value = numbers["value"]
        if value is not None and math.isfinite(value):
            plain[clean_text(name)] = clean(numbers)
    return plain


def error_text(error: BaseException) -> str:
    """Return what went wrong without what was being worked on.

    Our own errors name numbers and next steps, so they are given in full. A foreign error may
    quote its input, so only its type is.
    """
    kind = type(error).__name__
    return clean_text(f"{kind}: {error}") if isinstance(error, SlmError) else kind
