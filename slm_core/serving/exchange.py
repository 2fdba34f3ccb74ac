"""One question through the gateway, with an answer: what is compared, and what is captured."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from slm_core.backends.base import Completion
from slm_core.prompting.formats import render_completion
from slm_core.records import Tool, ToolUse, Track, TrafficOutcome, sha256_hex


class Question(NamedTuple):
    """What a caller asked, as it came."""

    agent_name: str
    track: Track
    conversation_id: str
    messages: Sequence[Any]
    tools: Sequence[Any]

    @property
    def name(self) -> str:
        """Name of the route."""
        return f"{self.agent_name}/{self.track}"

    def place(self) -> float:
        """Return where the conversation lies between 0 and 1; it always lies there.

        A canary with a share above that place answers it. A larger share keeps the
        conversations that a smaller one had.
        """
        digest = sha256_hex(f"{self.name}\n{self.conversation_id}")
        return int(digest[:12], 16) / 16**12


class Exchange(NamedTuple):
    """A question and one model's answer to it."""

    question: Question
    model: str
    source: Literal["llm", "slm"]
    message: Mapping[str, Any]
    """The assistant's turn in the wire form."""
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    seconds: float
    tags: Mapping[str, str]


Compare = Callable[[Track, tuple[Tool, ...], str, str, str | None], TrafficOutcome]
"""Compares the answer that was given with another; see ``evaluation.compare_answers``."""
Record = Callable[[Exchange], None]
"""Keeps an exchange; must return at once and never raise."""


def conversation_of(messages: Sequence[Any]) -> str:
    """Return an id for a conversation that names none: by its beginning, which never changes.

    Instructions are left out: many carry the time of day.
    """
    beginning: list[Any] = []
    for turn in messages:
        role = turn.get("role") if isinstance(turn, Mapping) else None
        if role not in ("system", "developer"):
            beginning.append(turn)
        if role == "user":
            break
    return "began-" + sha256_hex(json.dumps(beginning, sort_keys=True))[:16]


def answer_text(message: Mapping[str, Any]) -> str:
    """Return an assistant's turn as text; native tool calls in the ``toolcall`` format."""
    calls = message.get("tool_calls") or ()
    if not calls:
        content = message.get("content")
        return content if isinstance(content, str) else ""
    try:
        uses = [
            ToolUse(
                name=call["function"]["name"],
                arguments=json.loads(call["function"]["arguments"] or "{}"),
            )
            for call in calls
        ]
        return render_completion("toolcall", uses)
    except (KeyError, TypeError, ValueError, RecursionError):
        return ""  # calls that cannot be read are compared with nothing


def student_exchange(
    question: Question, model: str, completion: Completion, tags: Mapping[str, str]
) -> Exchange:
    """Return an adapter's answer as an exchange; marked, so that it never trains."""
    return Exchange(
        question,
        model,
        "slm",
        {"role": "assistant", "content": completion.text},
        completion.finish_reason,
        completion.prompt_tokens,
        completion.completion_tokens,
        completion.seconds,
        tags,
    )
