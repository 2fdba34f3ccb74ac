"""A captured call as the bytes that the spool keeps: JSON of ``Call``."""

from __future__ import annotations

import json
from typing import Any

import orjson

from slm_core.capture.redact import Redactor
from slm_core.records import Call


def encode(facts: dict[str, Any], texts: dict[str, Any], redactor: Redactor) -> bytes:
    """Return the call as JSON; ``texts``, what users and models wrote, is redacted first.

    Raises:
        ValueError, TypeError: the call holds what JSON cannot say.
    """
    encoded = _dumps(texts)
    if redactor.concerns(encoded):
        # What is looked at is what would be written, objects turned into text included.
        encoded = _dumps(redactor.apply(json.loads(encoded)))
    return _dumps(facts)[:-1] + b"," + encoded[1:]


def decode(body: bytes) -> Call:
    """Return the call that ``encode`` wrote.

    Raises:
        ValueError: the bytes are not JSON, or not a call.
    """
    try:
        return Call.model_validate_json(body)
    except ValueError:
        # Its JSON reader is fast but knows no lone surrogates.
        return Call.model_validate(json.loads(body))


def _dumps(value: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:
        # Lone surrogates and integers beyond 64 bits; ASCII escapes carry both.
        return json.dumps(value, default=str, allow_nan=False, separators=(",", ":")).encode()
