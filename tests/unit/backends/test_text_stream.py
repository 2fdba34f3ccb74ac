"""Streamed text is never split inside a character and never shows a stop string."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from slm_core.backends.text_stream import StopText, TextStream
from slm_core.prompting.render import Renderer


def test_a_character_is_never_split(tiny_model: Path) -> None:
    renderer = Renderer(AutoTokenizer.from_pretrained(tiny_model))
    said = "Zürich 東京 🎉 “ok”"
    ids = renderer.encode_content(said)
    assert len(ids) > len(said), "the tokenizer must split some characters"
    stream = TextStream(renderer.decode)
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) == said
    assert not any("\ufffd" in piece for piece in pieces)
    assert stream.rest() == ""


def test_pieces_of_any_tokens_add_up(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    renderer = Renderer(tokenizer)
    rng = random.Random(7)
    for _ in range(50):
        ids = [rng.randrange(len(tokenizer)) for _ in range(30)]
        stream = TextStream(renderer.decode)
        assert "".join([*map(stream.push, ids), stream.rest()]) == renderer.decode(ids)


@pytest.mark.parametrize(
    ("text", "stops", "shown"),
    [
        ("abcdef", (), "abcdef"),
        ("abcdef", ("cd",), "ab"),
        ("abcdef", ("ef", "bc"), "a"),
        ("aaab", ("aab",), "a"),
        ("abcde", ("xyz", "dez"), "abcde"),
        ("abab", ("ababc",), "abab"),
    ],
)
def test_text_ends_before_the_first_stop_string(
    text: str, stops: tuple[str, ...], shown: str
) -> None:
    for size in (1, 2, 6):
        stop = StopText(stops)
        said = ""
        for start in range(0, len(text), size):
            said += stop.push(text[start : start + size])
            assert shown.startswith(said)
            if stop.found:
                break
        assert said + stop.rest() == shown
        assert stop.found == (shown != text)


def test_only_what_may_begin_a_stop_string_is_held_back() -> None:
    stop = StopText(("</a>",))
    assert [stop.push(piece) for piece in ("x", "y <", "/", "b", ">")] == [
        "x",
        "y ",
        "",
        "</b",
        ">",
    ]
