"""Draw parameter names, their schemas, and values that only one pool owns."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from slm_core.testing.workload import pools
from slm_core.testing.workload.pools import Pool, draw_word, pool_of

_KINDS = {"string": 50, "integer": 20, "number": 8, "boolean": 8, "enum": 14}
"""Kinds of parameters and their weights."""

_CAPITALS = "ABCDEFGHJKLMNPQRSTUVWXYZ"
_DOMAINS = ("com", "org", "io")


def draw_parameter_name(rng: random.Random, pool: Pool, bag: Sequence[str]) -> str:
    """Return one word, or two joined by ``_``: from ``bag``, or any of ``pool`` if it is empty."""
    words = [
        rng.choice(bag) if bag else draw_word(rng, pool, pools.PARAMETERS)
        for _ in range(2 if rng.random() < 0.35 else 1)
    ]
    return "_".join(dict.fromkeys(words))


def draw_schema(rng: random.Random, pool: Pool) -> dict[str, Any]:
    """Return the JSON Schema of one parameter; an enum has three words."""
    kind = rng.choices(tuple(_KINDS), weights=tuple(_KINDS.values()))[0]
    if kind != "enum":
        return {"type": kind}
    words: dict[str, None] = {}
    while len(words) < 3:
        words[draw_word(rng, pool, pools.QUALITIES)] = None
    return {"type": "string", "enum": list(words)}


def draw_value(rng: random.Random, pool: Pool, schema: dict[str, Any]) -> Any:
    """Return a value that fits ``schema`` and, booleans aside, that ``pool`` owns."""
    if "enum" in schema:
        return rng.choice(schema["enum"])
    if schema["type"] == "boolean":
        return rng.random() < 0.5
    while True:
        value = _free_value(rng, schema["type"])
        if pool_of(str(value)) == pool:
            return value


def made_up_name(rng: random.Random) -> str:
    """Return a pronounceable word of one to three syllables, of any pool."""
    return "".join(pools.syllable(rng) for _ in range(rng.choice((1, 2, 2, 2, 3))))


def _free_value(rng: random.Random, kind: str) -> int | float | str:
    """Return a number, or text: one or two names, a date, a code or an address."""
    if kind == "integer":
        return rng.randrange(1, 10 ** rng.choice((1, 2, 2, 3, 4)))
    if kind == "number":
        return round(rng.uniform(0.1, 500.0), rng.choice((1, 2)))
    form = rng.random()
    if form < 0.35:
        return made_up_name(rng).capitalize()
    if form < 0.6:
        return f"{made_up_name(rng).capitalize()} {made_up_name(rng).capitalize()}"
    if form < 0.75:
        return f"20{rng.randrange(24, 40)}-{rng.randrange(1, 13):02d}-{rng.randrange(1, 29):02d}"
    if form < 0.9:
        letters = "".join(rng.choice(_CAPITALS) for _ in range(2))
        return f"{letters}-{rng.randrange(10, 10_000)}"
    return f"{made_up_name(rng)}@{made_up_name(rng)}.{rng.choice(_DOMAINS)}"
