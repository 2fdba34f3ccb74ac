"""Put a tool and its arguments into words, as a person would ask.

In the ``pretrain`` pool half of the openers and clauses are made of words that mean
nothing around what matters: the task, a label, a value. A model taught so relies on the
order of words, not on set phrases, and reads the phrasings of the other pools.
"""

from __future__ import annotations

import random
from typing import Any

from slm_core.records import Tool
from slm_core.testing.workload import phrasing, pools
from slm_core.testing.workload.pools import Pool

FILLER_RATE = 0.5
"""Share of openers and clauses of the ``pretrain`` pool made of invented words."""

CHATTER_RATE: dict[Pool, float] = {"pretrain": 0.2, "traffic": 0.08, "test": 0.08}
GREETING_RATE = 0.07


def phrase(rng: random.Random, pool: Pool, tool: Tool, arguments: dict[str, Any]) -> str:
    """Return a request for ``tool`` that says every argument once, in any order."""
    verb, noun = tool.name.split("_")
    opener = _opener(rng, pool).replace("{task}", f"{verb} the {noun}")
    clauses = [
        _clause(rng, pool)
        .replace("{label}", key.replace("_", " "))
        .replace("{value}", _spoken(rng, value))
        for key, value in arguments.items()
    ]
    rng.shuffle(clauses)
    if rng.random() < CHATTER_RATE[pool]:
        clauses.insert(rng.randrange(len(clauses) + 1), rng.choice(phrasing.CHATTER[pool]))
    joiner = rng.choice(phrasing.JOINERS)
    text = f"{opener}, {joiner.join(clauses)}." if clauses else f"{opener}."
    text = text[0].upper() + text[1:]
    if rng.random() < GREETING_RATE:
        text = f"{rng.choice(phrasing.GREETINGS[pool])} {text}"
    return text


def _opener(rng: random.Random, pool: Pool) -> str:
    if pool != "pretrain" or rng.random() >= FILLER_RATE:
        return rng.choice(phrasing.OPENERS[pool])
    return " ".join([*_filler(rng, 1, 7), "{task}", *_filler(rng, 0, 2)])


def _clause(rng: random.Random, pool: Pool) -> str:
    if pool != "pretrain" or rng.random() >= FILLER_RATE:
        return rng.choice(phrasing.CLAUSES[pool])
    first, second = rng.sample(("{label}", "{value}"), 2)
    words = [*_filler(rng, 0, 3), first, *_filler(rng, 0, 4), second, *_filler(rng, 0, 1)]
    return " ".join(words)


def _filler(rng: random.Random, least: int, most: int) -> list[str]:
    """Return words that mean nothing: common or invented ones, or both."""
    common = rng.choice((0.0, 0.5, 0.9))
    return [
        rng.choice(pools.COMMON) if rng.random() < common else pools.invented_word(rng)
        for _ in range(rng.randint(least, most))
    ]


def _spoken(rng: random.Random, value: Any) -> str:
    if isinstance(value, bool):
        return rng.choice(("true", "yes", "on") if value else ("false", "no", "off"))
    return str(value)
