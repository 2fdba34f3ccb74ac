"""The second noun: a frozen set of examples, and why some calls are not in it."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import Field

from slm_core.records.base import Record, Track, content_id, utc_now
from slm_core.records.capture import Message, Tool, ToolUse

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class Example(Record):
    """One question with its right answer: a training row or a test case.

    ``prompt`` never holds the context prefix (CEP); the renderer adds it.
    """

    id: str
    track: Track
    prompt: tuple[Message, ...]
    """System and user turns as captured, without CEP and without rendered tools."""
    tools: tuple[Tool, ...] = ()
    completion: str
    """The canonical right answer in the track's exact format; for a no-call row the
    refusal text."""
    calls: tuple[ToolUse, ...] = ()
    """The calls that ``completion`` encodes; empty on a no-call row."""
    accepted: tuple[dict[str, list[Any]], ...] = ()
    """Per call, parameter to the values also accepted. ``None`` in a list means that the
    parameter may be left out. A parameter not listed accepts its value in ``calls`` only."""
    conversation_id: str
    """Split and resampling unit."""
    domain: str = ""
    """For per-domain scores; empty when unknown."""
    source_call_id: str | None = None
    tags: dict[str, str] = Field(default_factory=dict)

    def prompt_digest(self) -> str:
        """Return the content id of the question alone; equal digests are a leak."""
        return content_id(
            "prompt",
            {
                "messages": [m.model_dump(mode="json") for m in self.prompt],
                "tools": [t.model_dump(mode="json") for t in self.tools],
            },
        )


class DropReason(StrEnum):
    """Why a call did not become an example."""

    FAILED = "call failed"
    INCOMPLETE = "stream left before its end"
    NO_RESPONSE = "no response"
    NO_PROMPT = "no question"
    ENCODING = "holds NaN or broken Unicode"
    SLM_ANSWER = "answered by a student"
    NO_TRACK = "response belongs to no track"
    BAD_FORMAT = "response is not in the track's exact format"
    TRUNCATED = "response was cut off"
    TOOL_SCHEMA = "a tool's parameters are not a JSON Schema"
    UNKNOWN_TOOL = "calls a tool that was not offered"
    ARGUMENTS = "arguments break the tool's schema"
    TOO_LONG = "longer than the model's context"
    DUPLICATE = "exact duplicate"
    CONFLICT = "same question, different answer"
    FROZEN_TEST = "in a frozen test split"
    SURPLUS = "beyond the rows asked for"


class Drop(Record):
    """One call that was left out, and why."""

    call_id: str
    reason: DropReason
    detail: str = ""


class Dataset(Record):
    """A frozen, content-addressed set of examples on disk."""

    id: str
    """Hash of the rows of every split; the same rows give the same id anywhere."""
    path: str
    rows: dict[Split, int]
    files: dict[str, str]
    """File name to SHA-256."""
    calls: int
    """How many calls went in: rows plus drops equals calls."""
    drops: dict[str, int]
    """Reason to count."""
    spec_digest: str
    parent_test_ids: tuple[str, ...] = ()
    """Datasets and test sets whose rows were kept out of this one's training rows. The test rows
    of the datasets are test rows again."""
    created_at: datetime = Field(default_factory=utc_now)
