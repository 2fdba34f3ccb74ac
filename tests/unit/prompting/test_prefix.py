"""The four context prefixes: what they answer, and that their text is what was trained on."""

from __future__ import annotations

from typing import get_args

import pytest

from slm_core.prompting.prefix import (
    PREFIXES,
    ContextPrefix,
    ErrorPattern,
    Rule,
    Variant,
    get_prefix,
)
from slm_core.testing.tiny_model import CONTROL_TOKENS

IDS: dict[Variant, str] = {
    "universal": "cep-c77d0d8a25f4f18a",
    "compact": "cep-b8e2712b05801d3f",
    "structured": "cep-f13e398a8653b8c7",
    "toolcall": "cep-6f079a8db668307d",
}
"""Adapters are trained under these texts: another id makes every one of them unusable."""


def test_the_four_variants_have_the_ids_that_adapters_were_trained_with():
    assert {variant: prefix.id for variant, prefix in PREFIXES.items()} == IDS
    assert tuple(PREFIXES) == get_args(Variant)
    assert [prefix.variant for prefix in PREFIXES.values()] == list(PREFIXES)


@pytest.mark.parametrize("pattern", ErrorPattern)
def test_the_universal_prefix_answers_every_error_pattern(pattern: ErrorPattern):
    rules = [r.text for r in PREFIXES["universal"].rules if r.addresses is pattern]
    assert rules


def test_a_prefix_for_one_track_answers_the_patterns_of_that_track():
    assert set(PREFIXES["toolcall"].addresses) == set(ErrorPattern)
    assert set(PREFIXES["structured"].addresses) == {
        ErrorPattern.MARKDOWN_WRAPPER,
        ErrorPattern.PARAMETER_NAMES,
    }
    assert "<tool_call" not in PREFIXES["structured"].text


def test_the_compact_prefix_answers_as_much_in_less_than_half_the_text():
    compact, universal = PREFIXES["compact"], PREFIXES["universal"]
    assert set(compact.addresses) == set(universal.addresses)
    assert len(compact.text) < len(universal.text) / 2


def test_the_id_is_that_of_the_text():
    def prefix(text: str, addresses: ErrorPattern | None = None) -> ContextPrefix:
        return ContextPrefix(variant="compact", rules=(Rule(text=text, addresses=addresses),))

    assert prefix("a").id == prefix("a", ErrorPattern.SELF_CLOSING_TAG).id
    assert prefix("a").id != prefix("b").id


@pytest.mark.parametrize("variant", PREFIXES)
def test_a_prefix_is_plain_text(variant: Variant):
    text = PREFIXES[variant].text
    assert text == text.strip()
    assert text.isascii()
    assert not any(token in text for token in CONTROL_TOKENS)


def test_no_variant_is_no_prefix():
    assert get_prefix(None) is None
    assert get_prefix("compact") is PREFIXES["compact"]
