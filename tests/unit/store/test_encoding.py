"""Whatever text a model writes comes back equal."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_core.errors import StoreError
from slm_core.records import Message
from slm_core.store.encoding import escape, from_json, to_json, unescape
from slm_core.testing.records import make_call

any_text = st.text(
    st.characters(exclude_categories=[]) | st.sampled_from('\\\x00"u0d8\ud83d\ude00')
)
any_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | any_text,
    lambda inner: st.lists(inner) | st.dictionaries(any_text, inner),
    max_leaves=8,
)


@given(any_text)
def test_escaped_text_suits_every_database_and_comes_back(text: str) -> None:
    escaped = escape(text)
    assert "\x00" not in escaped
    escaped.encode("utf-8")
    assert unescape(escaped) == text


@given(any_text, any_text)
def test_different_texts_stay_different(one: str, other: str) -> None:
    assert (escape(one) == escape(other)) == (one == other)


def test_ordinary_text_is_kept_as_it_is() -> None:
    assert escape("Ærlig talt: 漢字 🙂\n") == "Ærlig talt: 漢字 🙂\n"
    assert to_json({"a": "æ漢"}) == '{"a":"æ漢"}'


@given(any_json)
def test_json_suits_every_database_and_comes_back(value: Any) -> None:
    text = to_json(value)
    assert "\x00" not in text
    text.encode("utf-8")
    assert from_json(text) == value


def test_records_with_lone_surrogates_in_keys_come_back() -> None:
    half = chr(0xD83D)
    call = make_call(tags={half: half}, messages=(Message(role="user", content=half),))
    assert type(call).model_validate(from_json(to_json(call))) == call


@pytest.mark.parametrize("value", [math.nan, math.inf, object(), {"a": {1, 2}}, b"bytes"])
def test_what_json_cannot_say_is_refused(value: object) -> None:
    with pytest.raises(StoreError, match="cannot be stored as JSON"):
        to_json({"value": value})


def test_times_are_said_with_their_zone() -> None:
    moment = make_call().created_at
    assert datetime.fromisoformat(from_json(to_json([moment]))[0]) == moment
