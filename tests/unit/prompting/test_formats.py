"""Tools and calls are written in one exact way, which the strict parser reads back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_core.prompting.formats import (
    NO_CALL_JSON,
    NO_CALL_TEXT,
    dump_json,
    render_completion,
    render_tools,
)
from slm_core.prompting.parse import parse_output
from slm_core.records import TRACKS, Tool, ToolUse, Track
from slm_core.testing.records import WEATHER

CALL = ToolUse(name="get_weather", arguments={"city": "Zürich", "days": 2, "rain": True})

text = st.text(st.characters(exclude_categories=("Cs",)))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | text | st.sampled_from(["</tool_call>", '"}', "```json", "<|end|>"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
calls = st.builds(
    ToolUse,
    name=st.from_regex(r"[A-Za-z0-9_.-]{1,12}", fullmatch=True),
    arguments=st.dictionaries(text, values, max_size=3),
)


def test_a_call_on_each_track():
    body = '{"city": "Zürich", "days": 2, "rain": true}'
    assert render_completion("structured", [CALL]) == (
        f'{{"name": "get_weather", "arguments": {body}}}'
    )
    assert render_completion("toolcall", [CALL]) == (
        f'<tool_call name="get_weather">{body}</tool_call>'
    )


def test_several_calls_stand_one_a_line():
    assert render_completion("toolcall", [CALL, CALL]).splitlines() == (
        [render_completion("toolcall", [CALL])] * 2
    )


def test_the_structured_track_holds_one_call():
    with pytest.raises(ValueError, match="got 2"):
        render_completion("structured", [CALL, CALL])


def test_no_calls_give_the_refusal():
    assert render_completion("structured", []) == NO_CALL_JSON
    assert render_completion("toolcall", []) == NO_CALL_TEXT


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_json_does_not_know_are_refused(number: float):
    with pytest.raises(ValueError, match="not JSON compliant"):
        dump_json({"x": number})


@pytest.mark.parametrize("track", TRACKS)
@given(call=calls)
def test_the_strict_parser_reads_back_what_is_written(track: Track, call: ToolUse):
    output = parse_output(render_completion(track, [call]), track)
    assert output.calls == (call,)


@given(both=st.lists(calls, min_size=2, max_size=3))
def test_it_reads_back_several_calls(both: list[ToolUse]):
    output = parse_output(render_completion("toolcall", both), "toolcall")
    assert output.calls == tuple(both)


def test_tools_are_one_json_object_a_line():
    other = Tool(name="other", description="Says\nnothing.")
    opening, first, second, closing = render_tools([WEATHER, other]).split("\n")
    assert (opening, closing) == ("<tools>", "</tools>")
    assert json.loads(first) == WEATHER.model_dump()
    assert list(json.loads(second)) == ["name", "description", "parameters"]


def test_no_tools_are_no_text():
    assert render_tools([]) == ""
