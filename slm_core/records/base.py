"""What all records share: frozen, strict about unknown keys, content-addressed.

A record carries ids, paths, hashes and counts. Only ``Call`` and ``Example`` carry text.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Track = Literal["structured", "toolcall"]
TRACKS: tuple[Track, ...] = ("structured", "toolcall")


class Record(BaseModel):
    """A frozen value that refuses unknown keys."""

    # By default pydantic writes NaN as null, unseen; an id would then lie about its content.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


def canonical_json(value: Any) -> str:
    """Return ``value`` as JSON with sorted keys and no spaces, the form that is hashed.

    Raises:
        ValueError: ``value`` holds NaN or an infinity, which JSON cannot say.
    """
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def sha256_hex(data: str | bytes) -> str:
    """Return the SHA-256 of ``data`` (text as UTF-8) as 64 hexadecimal digits."""
    if isinstance(data, str):
        # Lone surrogates occur in model output; they must hash, not crash.
        data = data.encode("utf-8", "surrogatepass")
    return hashlib.sha256(data).hexdigest()


def content_id(kind: str, value: Any) -> str:
    """Return ``kind-`` and the first 16 hexadecimal digits of the content's SHA-256.

    64 bits: a collision among a million records has odds of about 3 in 10^8.
    """
    return f"{kind}-{sha256_hex(canonical_json(value))[:16]}"


def utc_now() -> datetime:
    """Return the present moment with its time zone, UTC."""
    return datetime.now(UTC)
