"""Calls as a real capture would hold them, one keyword away from any defect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from slm_core.prompting.formats import render_completion
from slm_core.records import Call, Message, Tool, ToolUse

CITY = {"type": "string"}
DAYS = {"type": "integer", "minimum": 1}
TOOLS = (
    Tool(
        name="get_weather",
        description="Weather of a city.",
        parameters={
            "type": "object",
            "properties": {"city": CITY, "days": DAYS},
            "required": ["city"],
            "additionalProperties": False,
        },
    ),
    Tool(name="get_time", parameters={"type": "object", "properties": {"city": CITY}}),
)

MakeCall = Callable[..., Call]
MakeCalls = Callable[..., list[Call]]


@pytest.fixture
def make_call() -> MakeCall:
    """Return a factory: call number ``n``, usable unless a keyword says otherwise."""

    def make(n: int = 0, **changes: Any) -> Call:
        track = changes.get("track", "toolcall")
        tool = ("get_weather", "get_time")[n % 2]
        use = ToolUse(name=tool, arguments={"city": f"City {n}"})
        values: dict[str, Any] = {
            "id": f"call-{n:04d}",
            "agent_type": "sub-agent",
            "agent_name": "weather",
            "model": "gpt-4o",
            "conversation_id": f"conversation-{n}",
            "messages": (
                Message(role="system", content="You help."),
                Message(role="user", content=f"Question {n} about City {n}, please"),
            ),
            "tools": TOOLS,
            "track": track,
            "response": render_completion(track or "toolcall", (use,)),
            "success": True,
        }
        return Call(**(values | changes))

    return make


@pytest.fixture
def make_calls(make_call: MakeCall) -> MakeCalls:
    """Return a factory of ``count`` usable calls, on both tracks in turn."""

    def make(count: int = 120, first: int = 0) -> list[Call]:
        return [
            make_call(n, track=("toolcall", "structured")[n // 2 % 2])
            for n in range(first, first + count)
        ]

    return make
