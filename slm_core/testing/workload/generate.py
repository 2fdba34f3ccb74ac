"""Make one request with its tools and its right answer, from a seeded random source."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from slm_core.prompting.formats import render_completion
from slm_core.records import Example, Message, Tool, ToolUse, Track, content_id
from slm_core.testing.workload import phrasing, pools
from slm_core.testing.workload.pools import Pool, pool_of, words_of

FORMAT_LINES: dict[Track, str] = {
    "structured": 'Answer with one JSON object, {"name": ..., "arguments": {...}}, '
    "and nothing else. "
    'If no tool fits, answer {"name": null, "arguments": {}}.',
    "toolcall": 'Answer with one <tool_call name="TOOL">{arguments}</tool_call> '
    "and nothing else. "
    "If no tool fits, answer: No tool fits this request.",
}
"""What the agents' system prompts say about the answer; the same in every pool."""

INVENTED_RATE = 0.85
"""Share of words of the ``pretrain`` pool that no dictionary holds."""

FILLER_RATE = 0.5
"""Share of openers and clauses of the ``pretrain`` pool made of invented words."""

NO_CALL_RATE = 0.05
CHATTER_RATE = 0.08
GREETING_RATE = 0.07


def agent_name(track: Track) -> str:
    """Return the demo agent that works on ``track``."""
    return {"structured": "intake", "toolcall": "dispatcher"}[track]


def generate(seed: int, count: int, pool: Pool, track: Track) -> Iterator[Example]:
    """Yield ``count`` examples of ``pool``; the same arguments give the same examples."""
    rng = random.Random(f"{pool}/{track}/{seed}")
    seen: set[str] = set()
    while len(seen) < count:
        example = make_example(rng, pool, track)
        if example.prompt_digest() not in seen:
            seen.add(example.prompt_digest())
            yield example


def make_example(rng: random.Random, pool: Pool, track: Track) -> Example:
    """Return one single-turn request with two or three tools and its right answer."""
    tools = make_tools(rng, pool, rng.choice((2, 2, 3)))
    system = f"{rng.choice(phrasing.ROLES[pool])} {FORMAT_LINES[track]}"
    query, calls = make_request(rng, pool, tools)
    prompt = (
        Message(role="system", content=system),
        Message(role="user", content=query),
    )
    completion = render_completion(track, calls)
    body = {"prompt": [m.content for m in prompt], "tools": [t.name for t in tools]}
    return Example(
        id=content_id("case", body),
        track=track,
        prompt=prompt,
        tools=tuple(tools),
        completion=completion,
        calls=tuple(calls),
        accepted=tuple({} for _ in calls),
        conversation_id=content_id("talk", body),
        domain=tools[0].name.split("_")[0] if not calls else calls[0].name.split("_")[0],
        tags={"pool": pool},
    )


def make_tools(rng: random.Random, pool: Pool, count: int) -> list[Tool]:
    """Return ``count`` tools with different names; some share a verb or a noun."""
    tools: list[Tool] = []
    names: set[str] = set()
    bag: list[str] = []
    if pool == "pretrain" and rng.random() < 0.5:
        # Few words for many parameters: names then differ in one word only.
        bag = [_word(rng, pool, pools.PARAMETERS) for _ in range(5)]
    while len(tools) < count:
        verb, noun = (
            _word(rng, pool, pools.VERBS),
            _word(rng, pool, pools.NOUNS),
        )
        if tools and rng.random() < 0.3:
            other = tools[-1].name.split("_")
            verb, noun = (other[0], noun) if rng.random() < 0.5 else (verb, other[1])
        name = f"{verb}_{noun}"
        if name in names:
            continue
        names.add(name)
        properties: dict[str, Any] = {}
        for _ in range(rng.choice((1, 2, 2, 3))):
            properties[_parameter_name(rng, pool, bag)] = _parameter_schema(rng, pool)
        required = [key for key in properties if rng.random() < 0.8] or list(properties)[:1]
        tools.append(
            Tool(
                name=name,
                description=f"{verb.capitalize()} a {noun}.",
                parameters={
                    "type": "object",
                    "properties": properties,
                    "required": required,
                },
            )
        )
    return tools


def make_request(
    rng: random.Random, pool: Pool, tools: Sequence[Tool]
) -> tuple[str, list[ToolUse]]:
    """Return a request in words, and the calls that answer it (none, or one)."""
    if rng.random() < NO_CALL_RATE:
        stranger = make_tools(rng, pool, 1)[0]
        taken = {word for tool in tools for word in tool.name.split("_")}
        if not taken & set(stranger.name.split("_")):
            return _phrase(rng, pool, stranger, _arguments(rng, pool, stranger)), []
    tool = rng.choice(tools)
    arguments = _arguments(rng, pool, tool)
    return _phrase(rng, pool, tool, arguments), [ToolUse(name=tool.name, arguments=arguments)]


def _arguments(rng: random.Random, pool: Pool, tool: Tool) -> dict[str, Any]:
    required = set(tool.parameters["required"])
    return {
        key: _value(rng, pool, schema)
        for key, schema in tool.parameters["properties"].items()
        if key in required or rng.random() < 0.5
    }


def _phrase(rng: random.Random, pool: Pool, tool: Tool, arguments: dict[str, Any]) -> str:
    verb, noun = tool.name.split("_")
    opener = _opener(rng, pool).replace("{task}", f"{verb} the {noun}")
    clauses = [
        _clause(rng, pool)
        .replace("{label}", key.replace("_", " "))
        .replace("{value}", _spoken(rng, value))
        for key, value in arguments.items()
    ]
    rng.shuffle(clauses)
    if rng.random() < (0.2 if pool == "pretrain" else CHATTER_RATE):
        clauses.insert(rng.randrange(len(clauses) + 1), rng.choice(phrasing.CHATTER[pool]))
    joiner = rng.choice(phrasing.JOINERS)
    text = f"{opener}, {joiner.join(clauses)}." if clauses else f"{opener}."
    text = text[0].upper() + text[1:]
    if rng.random() < GREETING_RATE:
        text = f"{rng.choice(phrasing.GREETINGS[pool])} {text}"
    return text


def _word(rng: random.Random, pool: Pool, words: tuple[str, ...]) -> str:
    if pool == "pretrain" and rng.random() < INVENTED_RATE:
        return pools.invented_word(rng)
    return rng.choice(words_of(pool, words))


def _qualities(rng: random.Random, pool: Pool) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < 3:
        found[_word(rng, pool, pools.QUALITIES)] = None
    return list(found)


def _clause(rng: random.Random, pool: Pool) -> str:
    if pool != "pretrain" or rng.random() >= FILLER_RATE:
        return rng.choice(phrasing.CLAUSES[pool])
    # Made-up connecting words: only label and value matter, whichever comes first.
    first, second = rng.sample(("{label}", "{value}"), 2)
    parts = [
        *_filler(rng, 0, 3), first, *_filler(rng, 0, 4), second, *_filler(rng, 0, 1)
    ]  # fmt: skip
    return " ".join(parts)


def _opener(rng: random.Random, pool: Pool) -> str:
    if pool != "pretrain" or rng.random() >= FILLER_RATE:
        return rng.choice(phrasing.OPENERS[pool])
    return " ".join([*_filler(rng, 1, 7), "{task}", *_filler(rng, 0, 2)])


def _chatter(rng: random.Random, pool: Pool) -> str:
    if pool != "pretrain" or rng.random() < 0.2:
        return rng.choice(phrasing.CHATTER[pool])
    return " ".join(_filler(rng, 3, 8))


def _filler(rng: random.Random, least: int, most: int) -> list[str]:
    """Return words that mean nothing: common or invented ones, or both."""
    common = rng.choice((0.0, 0.5, 0.9))
    return [
        rng.choice(phrasing.COMMON_WORDS) if rng.random() < common else pools.invented_word(rng)
        for _ in range(rng.randint(least, most))
    ]


def _spoken(rng: random.Random, value: Any) -> str:
    if isinstance(value, bool):
        return rng.choice(("true", "yes", "on") if value else ("false", "no", "off"))
    return str(value)


def _parameter_name(rng: random.Random, pool: Pool, bag: Sequence[str]) -> str:
    words = [
        rng.choice(bag) if bag else _word(rng, pool, pools.PARAMETERS)
        for _ in range(2 if rng.random() < 0.35 else 1)
    ]
    return "_".join(dict.fromkeys(words))


def _parameter_schema(rng: random.Random, pool: Pool) -> dict[str, Any]:
    kind = rng.choices(
        ("string", "integer", "number", "boolean", "enum"), weights=(50, 20, 8, 8, 14)
    )[0]
    if kind == "enum":
        return {
            "type": "string",
            "enum": _qualities(rng, pool),
        }
    return {"type": kind}


def _value(rng: random.Random, pool: Pool, schema: dict[str, Any]) -> Any:
    if "enum" in schema:
        return rng.choice(schema["enum"])
    if schema["type"] == "boolean":
        return rng.random() < 0.5
    while True:
        value = _free_value(rng, schema["type"])
        if pool_of(str(value)) == pool:
            return value


def _free_value(rng: random.Random, kind: str) -> Any:
    if kind == "integer":
        return rng.randrange(1, 10 ** rng.choice((1, 2, 2, 3, 4)))
    if kind == "number":
        return round(rng.uniform(0.1, 500.0), rng.choice((1, 2))) + 0.0
    form = rng.random()
    if form < 0.35:
        return made_up_name(rng).capitalize()
    if form < 0.6:
        return f"{made_up_name(rng).capitalize()} {made_up_name(rng).capitalize()}"
    if form < 0.75:
        return f"20{rng.randrange(24, 40)}-{rng.randrange(1, 13):02d}-{rng.randrange(1, 29):02d}"
    if form < 0.9:
        letters = "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(2))
        return f"{letters}-{rng.randrange(10, 10_000)}"
    return f"{made_up_name(rng)}@{made_up_name(rng)}.{rng.choice(('com', 'org', 'io'))}"


def made_up_name(rng: random.Random) -> str:
    """Return a pronounceable word of two or three syllables."""
    return "".join(
        rng.choice(pools.ONSETS) + rng.choice(pools.NUCLEI) + rng.choice(pools.CODAS)
        for _ in range(rng.choice((1, 2, 2, 2, 3)))
    )
