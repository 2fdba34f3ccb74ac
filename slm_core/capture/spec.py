"""What may be configured about capture."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from slm_core.capture.prices import Price

Secretive = Literal["secrets", "email", "card"]
"""Built-in kinds of text that can be blacked out."""
OnFull = Literal["drop", "block", "raise"]

MIB = 1024 * 1024


def _check_pattern(pattern: str) -> str:
    try:
        matches_nothing = re.compile(pattern).fullmatch("")
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
    if matches_nothing:
        raise ValueError(f"{pattern!r} matches the empty string, which is everywhere")
    return pattern


class CaptureSpec(BaseModel):
    """How calls are captured, and what happens when they cannot be."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    sample_rate: float = Field(default=1.0, ge=0, le=1)
    """Share of the conversations that are kept. A conversation is kept whole or not at all."""
    redact: tuple[Secretive, ...] = ("secrets",)
    """What is blacked out before a call touches the disk: API keys and tokens, e-mail
    addresses, payment card numbers."""
    redact_patterns: tuple[Annotated[str, AfterValidator(_check_pattern)], ...] = ()
    """Regular expressions; whatever they match is blacked out too."""
    prices: tuple[Price, ...] = ()
    """Your own prices; they go before the built-in table."""
    segment_bytes: int = Field(default=4 * MIB, ge=4096)
    """Size of one spool file. Every process holds one."""
    spool_bytes: int = Field(default=1024 * MIB, ge=4096)
    """Most that the spool folder may hold before ``on_full`` applies."""
    on_full: OnFull = "drop"
    """When the spool or its disk is full: ``drop`` the new call and count it, ``block`` the
    caller for up to ``block_seconds`` and then drop, or ``raise`` a ``CaptureError``."""
    block_seconds: float = Field(default=5.0, gt=0)
    """Longest wait of one call under ``on_full="block"``."""
    stream_usage: bool = True
    """Ask for token counts at the end of a stream (``stream_options.include_usage``) where the
    application did not. Turn it off for servers that refuse the option."""
    strict: bool = False
    """Raise ``CaptureError`` into the application whenever a call cannot be captured, in place
    of counting it. For tests."""

    @model_validator(mode="after")
    def _a_segment_fits(self) -> Self:
        if self.segment_bytes > self.spool_bytes:
            raise ValueError(
                f"segment_bytes {self.segment_bytes} is more than spool_bytes {self.spool_bytes}"
            )
        return self
