"""Make one request with its tools and its right answer, from a seeded random source.

The draws of a seed never change: the shipped models were made from them, and every saved
test set of the demo. A test pins them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from slm_core.prompting.formats import render_completion
from slm_core.records import Call, Example, Message, Tool, ToolUse, Track, content_id
from slm_core.testing.workload import phrasing, pools
from slm_core.testing.workload.pools import Pool, draw_word
from slm_core.testing.workload.values import draw_parameter_name, draw_schema, draw_value
from slm_core.testing.workload.wording import phrase

FORMAT_LINES: dict[Track, str] = {
    "structured": 'Answer with one JSON object, {"name": ..., "arguments": {...}}, '
    "and nothing else. "
    'If no tool fits, answer {"name": null, "arguments": {}}.',
    "toolcall": 'Answer with one <tool_call name="TOOL">{arguments}</tool_call> '
    "and nothing else. "
    "If no tool fits, answer: No tool fits this request.",
}
"""What the agents' system prompts say about the answer; the same in every pool."""

AGENT_NAMES: dict[Track, str] = {"structured": "intake", "toolcall": "dispatcher"}
"""The demo agent that works on each track."""

NO_CALL_RATE = 0.05
"""Share of requests for a tool that is not offered."""


def agent_name(track: Track) -> str:
    """Return the demo agent that works on ``track``."""
    return AGENT_NAMES[track]


def generate(seed: int, count: int, pool: Pool, track: Track) -> Iterator[Example]:
    """Yield ``count`` different examples of ``pool``; the same arguments give the same ones."""
    rng = random.Random(f"{pool}/{track}/{seed}")
    seen: set[str] = set()
    while len(seen) < count:
        example = make_example(rng, pool, track)
        digest = example.prompt_digest()
        if digest not in seen:
            seen.add(digest)
            yield example


def make_example(rng: random.Random, pool: Pool, track: Track) -> Example:
    """Return one single-turn request with two or three tools and its right answer."""
    tools = make_tools(rng, pool, rng.choice((2, 2, 3)))
    system = f"{rng.choice(phrasing.ROLES[pool])} {FORMAT_LINES[track]}"
    query, calls = make_request(rng, pool, tools)
    body = {"prompt": [system, query], "tools": [tool.name for tool in tools]}
    asked_for = calls[0].name if calls else tools[0].name
    return Example(
        id=content_id("case", body),
        track=track,
        prompt=(Message(role="system", content=system), Message(role="user", content=query)),
        tools=tuple(tools),
        completion=render_completion(track, calls),
        calls=tuple(calls),
        accepted=tuple({} for _ in calls),
        conversation_id=content_id("talk", body),
        domain=asked_for.split("_")[0],
        tags={"pool": pool},
    )


def answered(
    example: Example, call_id: str, *, model: str = "nano-teacher", created_at: datetime
) -> Call:
    """Return the call in which ``model`` gave the right answer to ``example``."""
    return Call(
        id=call_id,
        agent_type="sub-agent",
        agent_name=agent_name(example.track),
        model=model,
        conversation_id=f"talk-of-{call_id}",
        messages=example.prompt,
        tools=example.tools,
        track=example.track,
        response=example.completion,
        success=True,
        created_at=created_at,
    )


def make_tools(rng: random.Random, pool: Pool, count: int) -> list[Tool]:
    """Return ``count`` tools named ``verb_noun``, all different; some share one of the two."""
    tools: list[Tool] = []
    bag: list[str] = []
    if pool == "pretrain" and rng.random() < 0.5:
        # Few words for many parameters: names then differ in one word only.
        bag = [draw_word(rng, pool, pools.PARAMETERS) for _ in range(5)]
    while len(tools) < count:
        verb = draw_word(rng, pool, pools.VERBS)
        noun = draw_word(rng, pool, pools.NOUNS)
        if tools and rng.random() < 0.3:
            other_verb, other_noun = tools[-1].name.split("_")
            verb, noun = (other_verb, noun) if rng.random() < 0.5 else (verb, other_noun)
        if f"{verb}_{noun}" not in {tool.name for tool in tools}:
            tools.append(_make_tool(rng, pool, verb, noun, bag))
    return tools


def make_request(
    rng: random.Random, pool: Pool, tools: Sequence[Tool]
) -> tuple[str, list[ToolUse]]:
    """Return a request in words, and the calls that answer it (none, or one)."""
    if rng.random() < NO_CALL_RATE:
        stranger = make_tools(rng, pool, 1)[0]
        taken = {word for tool in tools for word in tool.name.split("_")}
        if taken.isdisjoint(stranger.name.split("_")):
            return phrase(rng, pool, stranger, _draw_arguments(rng, pool, stranger)), []
    tool = rng.choice(tools)
    arguments = _draw_arguments(rng, pool, tool)
    return phrase(rng, pool, tool, arguments), [ToolUse(name=tool.name, arguments=arguments)]


def _make_tool(rng: random.Random, pool: Pool, verb: str, noun: str, bag: Sequence[str]) -> Tool:
    properties: dict[str, Any] = {}
    for _ in range(rng.choice((1, 2, 2, 3))):
        schema = draw_schema(rng, pool)
        properties[draw_parameter_name(rng, pool, bag)] = schema
    required = [key for key in properties if rng.random() < 0.8] or list(properties)[:1]
    return Tool(
        name=f"{verb}_{noun}",
        description=f"{verb.capitalize()} a {noun}.",
        parameters={"type": "object", "properties": properties, "required": required},
    )


def _draw_arguments(rng: random.Random, pool: Pool, tool: Tool) -> dict[str, Any]:
    """Return a value for every required parameter and for half of the others."""
    required = set(tool.parameters["required"])
    return {
        key: draw_value(rng, pool, schema)
        for key, schema in tool.parameters["properties"].items()
        if key in required or rng.random() < 0.5
    }
