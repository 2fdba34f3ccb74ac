"""Which words and values belong to which pool: decided by a hash, so never by two.

Words of tools, parameters and enum values come from the lists in ``words/``; names, codes,
dates and numbers are generated. Each belongs to the pool that the hash of its text names.
"""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from functools import lru_cache
from pathlib import Path
from typing import Literal

Pool = Literal["pretrain", "traffic", "test"]
POOLS: tuple[Pool, ...] = ("pretrain", "traffic", "test")


def _read(name: str) -> tuple[str, ...]:
    text = (Path(__file__).parent / "words" / f"{name}.txt").read_text(encoding="utf-8")
    return tuple(text.split())


VERBS = _read("verbs")
NOUNS = _read("nouns")
PARAMETERS = _read("parameters")
QUALITIES = _read("qualities")

ENGLISH = _read("english")
"""More words of the ``pretrain`` pool: those that Python's own documentation uses."""

COMMON = _read("common")
"""Words that every pool may use between others; alone they are no phrasing."""

INVENTED_RATE = 0.85
"""Share of words of the ``pretrain`` pool that are not from the four lists."""

_ONSETS = "b br c ch d dr f fl g gr h j k kl l m n p pr qu r s sh st t th tr v w y z".split()
_NUCLEI = "a e i o u ai ea ei ia io oa ou".split()
_CODAS = ("", "", "", "n", "r", "l", "s", "m", "th", "nd", "rk", "x")


@lru_cache(maxsize=200_000)
def pool_of(text: str) -> Pool:
    """Return the pool that owns ``text``: one in five is test, one traffic, three pretrain.

    Case and spaces around do not matter, so that ``Rome`` and ``rome`` share a pool.
    """
    digest = hashlib.sha256(text.strip().lower().encode()).digest()
    share = int.from_bytes(digest[:4], "big") % 5
    return "test" if share == 0 else "traffic" if share == 1 else "pretrain"


@lru_cache(maxsize=64)
def words_of(pool: Pool, words: tuple[str, ...]) -> tuple[str, ...]:
    """Return the words of a list that belong to ``pool``, in order."""
    return tuple(word for word in dict.fromkeys(words) if pool_of(word) == pool)


def draw_word(rng: random.Random, pool: Pool, words: tuple[str, ...]) -> str:
    """Return a word of ``pool``: one of ``words``, or for ``pretrain`` mostly an invented one."""
    if pool == "pretrain" and rng.random() < INVENTED_RATE:
        return invented_word(rng)
    return rng.choice(words_of(pool, words))


def invented_word(rng: random.Random) -> str:
    """Return a word of three to ten letters that is or looks English, owned by ``pretrain``.

    One of ``ENGLISH``, a walk along a second-order Markov chain over the pretrain words, or
    two made-up syllables. Without such words a small model learns the vocabulary by heart
    and cannot copy a name that it has never seen.
    """
    kind = rng.random()
    if kind < 0.45:
        return rng.choice(ENGLISH)
    while True:
        word = syllable(rng) + syllable(rng) if kind > 0.8 else _markov_word(rng)
        if 3 <= len(word) <= 10 and pool_of(word) == "pretrain":
            return word


def syllable(rng: random.Random) -> str:
    """Return one pronounceable syllable."""
    return rng.choice(_ONSETS) + rng.choice(_NUCLEI) + rng.choice(_CODAS)


def _markov_word(rng: random.Random) -> str:
    follow = _successors()
    word = "^^"
    while not word.endswith("$") and len(word) < 13:
        word += rng.choice(follow[word[-2:]])
    return word[2:].rstrip("$")


@lru_cache(maxsize=1)
def _successors() -> dict[str, list[str]]:
    """Return the letters that follow each pair of letters in the pretrain words.

    ``^`` pads the start of a word and ``$`` marks its end.
    """
    follow: dict[str, list[str]] = defaultdict(list)
    for words in (VERBS, NOUNS, PARAMETERS, QUALITIES, ENGLISH):
        for word in words_of("pretrain", words):
            padded = f"^^{word}$"
            for i in range(len(padded) - 2):
                follow[padded[i : i + 2]].append(padded[i + 2])
    return follow
