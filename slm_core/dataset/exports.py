"""Rows in the formats of other trainers: Hermes function calling and prompt/completion."""

from __future__ import annotations

from typing import Any

from slm_core.prompting.hermes import hermes_conversation
from slm_core.prompting.prefix import ContextPrefix
from slm_core.prompting.render import compose
from slm_core.records import Example, Message


def hermes_row(example: Example) -> dict[str, Any]:
    """Return the example as a conversation in the Hermes function-calling format."""
    answer = Message(role="assistant", content=example.completion)
    return hermes_conversation(example.id, example.prompt, example.tools, answer, example.track)


def prompt_completion_row(example: Example, prefix: ContextPrefix | None) -> dict[str, Any]:
    """Return the example as two lists of chat messages, ``prompt`` and ``completion``.

    The prompt holds the turns as our own renderer composes them, tools and prefix included.
    """
    turns = compose(example.prompt, example.tools, prefix)
    return {
        "prompt": [{"role": turn.role, "content": turn.content} for turn in turns],
        "completion": [{"role": "assistant", "content": example.completion}],
    }
