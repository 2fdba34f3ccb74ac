"""The first noun: one captured LLM call, and the claim that groups 100 of them."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import Field

from slm_core.records.base import Record, Track, content_id, utc_now

STUDENT_FINGERPRINT = "slm-"
"""A server of ours puts a student's answer under a ``system_fingerprint`` that begins so;
capture then notes that a student answered."""

Role = Literal["system", "user", "assistant", "tool"]


class Tool(Record):
    """A function that a model may call."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=lambda: {"type": "object", "properties": {}})
    """JSON Schema (Draft 2020-12) of the arguments object."""


class ToolUse(Record):
    """One function call: a name and its arguments."""

    name: str
    arguments: dict[str, Any]


class Message(Record):
    """One turn of a conversation."""

    role: Role
    content: str
    tool_calls: tuple[ToolUse, ...] = ()


class Call(Record):
    """One LLM call as it happened, complete enough to become training data."""

    id: str
    """Ours, made at capture; never the provider's response id."""
    agent_type: str
    """For example ``orchestrator`` or ``sub-agent``."""
    agent_name: str
    model: str
    conversation_id: str
    """Calls of one conversation never fall on both sides of a split."""
    messages: tuple[Message, ...]
    """What the model was asked: system and user turns, in order."""
    tools: tuple[Tool, ...] = ()
    track: Track | None = None
    """Declared by the caller; None lets the dataset stage infer it from the response."""
    response: str | None = None
    """The assistant's text as it came; None when the call failed before any answer."""
    tool_calls: tuple[ToolUse, ...] = ()
    """Native tool calls of the response, if the provider returned any."""
    finish_reason: str | None = None
    success: bool
    complete: bool = True
    """False when a stream was left before its end; such a call never trains."""
    source: Literal["llm", "slm"] = "llm"
    """Who answered. A student's own answers are never labels."""
    error: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_nanousd: int | None = None
    """Price in 10^-9 US dollars; None when the model's price is unknown."""
    seconds: float = 0.0
    created_at: datetime = Field(default_factory=utc_now)
    tags: dict[str, str] = Field(default_factory=dict)
    idempotency_key: str | None = None
    """If given, a second call of the same agent with this key is not stored again."""

    def digest(self) -> str:
        """Return the content id of question and answer, blind to ids, times and cost."""
        return content_id(
            "qa",
            {
                "messages": [m.model_dump(mode="json") for m in self.messages],
                "tools": [t.model_dump(mode="json") for t in self.tools],
                "response": self.response,
                "tool_calls": [t.model_dump(mode="json") for t in self.tool_calls],
            },
        )


class CallStats(Record):
    """Totals of one agent and model."""

    agent_name: str
    agent_type: str
    model: str
    calls: int
    succeeded: int
    cost_nanousd: int | None
    """Sum over the calls whose price is known; None when none is."""
    unpriced: int
    """Calls whose price is unknown and which the sum therefore leaves out."""
    seconds_mean: float
    seconds_p50: float
    """Nearest rank, to within 2 %; so is the next."""
    seconds_p95: float
    prompt_tokens: int
    completion_tokens: int

    @property
    def success_rate(self) -> float:
        """Share of calls that succeeded, 0 to 1."""
        return self.succeeded / self.calls if self.calls else 0.0


class Quarantined(Record):
    """An input row that could not be read; kept with its reason, never dropped."""

    source: str
    """Where it came from, for example a file name and byte offset."""
    reason: str
    raw: str
    """The row as found, at most 64 KiB of it."""
    created_at: datetime = Field(default_factory=utc_now)


class IngestReport(Record):
    """What one drain of the capture spool did. Nothing is lost: the counts add up."""

    read: int = 0
    stored: int = 0
    duplicates: int = 0
    quarantined: int = 0
    torn: int = 0
    """Calls whose process died inside ``capture_call``, half written; not part of ``read``."""
    usable: int = 0
    """Of those stored: how many may become examples."""
    unusable: dict[str, int] = Field(default_factory=dict)
    """Reason to count, for stored calls that may not become examples."""
    claims: tuple[str, ...] = ()
    """Ids of the claims made by this ingest."""
    waiting: int = 0
    """Usable calls that no claim holds yet."""


class ClaimState(StrEnum):
    """Life of a claim: new, submitted, running, then done; released returns it to the pool."""

    NEW = "new"
    SUBMITTED = "submitted"
    RUNNING = "running"
    DONE = "done"
    RELEASED = "released"


class Claim(Record):
    """A batch of usable calls that belongs to exactly one retrain."""

    id: str
    size: int
    state: ClaimState
    owner: str | None = None
    """Id of the run that holds it."""
    attempts: int = 0
    created_at: datetime = Field(default_factory=utc_now)
