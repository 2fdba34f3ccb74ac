"""Which calls become examples, and the reason given for the others."""

from __future__ import annotations

import pytest

from slm_core.dataset import drop_reason, why_unusable
from slm_core.dataset.examples import examine
from slm_core.prompting.formats import NO_CALL_JSON, NO_CALL_TEXT
from slm_core.records import DropReason, Example, Message, Tool, ToolUse

WEATHER = ToolUse(name="get_weather", arguments={"city": "Oslo"})
TAG = '<tool_call name="get_weather">{"city": "Oslo"}</tool_call>'
JSON = '{"name": "get_weather", "arguments": {"city": "Oslo"}}'


def schema(**parameters):
    return (Tool(name="get_weather", parameters=parameters),)


def arguments(**values):
    return {"tool_calls": (ToolUse(name="get_weather", arguments=values),)}


@pytest.mark.parametrize(
    ("changes", "reason", "detail"),
    [
        ({"success": False, "error": "429"}, DropReason.FAILED, "429"),
        ({"complete": False}, DropReason.INCOMPLETE, ""),
        ({"response": None}, DropReason.NO_RESPONSE, ""),
        ({"response": " \n"}, DropReason.NO_RESPONSE, ""),
        ({"source": "slm"}, DropReason.SLM_ANSWER, "gpt-4o"),
        ({"messages": ()}, DropReason.NO_PROMPT, ""),
        ({"messages": (Message(role="user", content=" "),)}, DropReason.NO_PROMPT, ""),
        ({"messages": (Message(role="user", content="a\ud800"),)}, DropReason.ENCODING, "ud800"),
        (arguments(city="\udfff"), DropReason.ENCODING, "udfff"),
        (arguments(city=float("nan")), DropReason.ENCODING, "JSON"),
        ({"tools": schema(maximum=float("inf"))}, DropReason.ENCODING, "JSON"),
        ({"track": None, "response": "It is sunny."}, DropReason.NO_TRACK, ""),
        ({"tools": schema(type="dict")}, DropReason.TOOL_SCHEMA, "get_weather: $.type"),
        ({"tools": schema(properties={"a": 3})}, DropReason.TOOL_SCHEMA, "$.properties.a"),
        ({"tools": schema(pattern="[")}, DropReason.TOOL_SCHEMA, "regex"),
        ({"tools": schema() + schema()}, DropReason.TOOL_SCHEMA, "two tools"),
        ({"response": f"```\n{TAG}\n```"}, DropReason.BAD_FORMAT, "Markdown fence"),
        ({"response": JSON}, DropReason.BAD_FORMAT, "JSON without the tag"),
        ({"track": "structured", "response": TAG}, DropReason.BAD_FORMAT, ""),
        ({"response": "No tool fits."}, DropReason.BAD_FORMAT, "prose"),
        (
            {"track": "structured", "tool_calls": (WEATHER, WEATHER)},
            DropReason.BAD_FORMAT,
            "fewer or more calls",
        ),
        (
            {"tool_calls": (ToolUse(name='a"b', arguments={}),)},
            DropReason.BAD_FORMAT,
            "",
        ),
        ({"response": TAG, "finish_reason": "length"}, DropReason.TRUNCATED, "length"),
        ({"response": TAG[:40], "finish_reason": "length"}, DropReason.TRUNCATED, "length"),
        ({"response": TAG, "finish_reason": "content_filter"}, DropReason.TRUNCATED, "filter"),
        ({"tool_calls": (ToolUse(name="Get_weather", arguments={}),)}, DropReason.UNKNOWN_TOOL, ""),
        ({"tools": (), "response": TAG}, DropReason.UNKNOWN_TOOL, "get_weather"),
        (arguments(), DropReason.ARGUMENTS, "'city' is a required property"),
        (arguments(city=5), DropReason.ARGUMENTS, "$.city: 5 is not of type 'string'"),
        (arguments(city="Oslo", days=True), DropReason.ARGUMENTS, "$.days"),
        (arguments(city="Oslo", days="1"), DropReason.ARGUMENTS, "$.days"),
        (arguments(city="Oslo", days=0), DropReason.ARGUMENTS, "minimum"),
        (arguments(city="Oslo", place=1), DropReason.ARGUMENTS, "place"),
    ],
)
def test_a_defect_names_its_reason(make_call, changes, reason, detail):
    found = drop_reason(make_call(**changes))

    assert found is not None
    assert found[0] == reason
    assert detail in found[1]


def test_the_first_filter_that_objects_names_the_reason(make_call):
    everything_wrong = {
        "success": False,
        "complete": False,
        "response": "x",
        "source": "slm",
        "tools": schema(type="dict"),
    }
    order = [DropReason.FAILED, DropReason.INCOMPLETE, DropReason.SLM_ANSWER]
    order += [DropReason.TOOL_SCHEMA, DropReason.BAD_FORMAT]
    repairs = [{"success": True}, {"complete": True}, {"source": "llm"}, {"tools": schema()}, {}]
    for reason, repair in zip(order, repairs, strict=True):
        assert drop_reason(make_call(**everything_wrong))[0] == reason
        everything_wrong |= repair


@pytest.mark.parametrize(
    ("track", "response"), [("toolcall", NO_CALL_TEXT), ("structured", NO_CALL_JSON)]
)
@pytest.mark.parametrize("declared", [True, False])
def test_a_canonical_refusal_is_kept_as_a_no_call_example(make_call, track, response, declared):
    example = examine(make_call(track=track if declared else None, response=response))

    assert (example.track, example.calls, example.completion) == (track, (), response)


@pytest.mark.parametrize(("response", "track"), [(TAG, "toolcall"), (JSON, "structured")])
def test_an_undeclared_track_is_read_from_the_response(make_call, response, track):
    example = examine(make_call(track=None, response=response))

    assert example.track == track
    assert example.calls == (WEATHER,)


def test_completions_are_written_canonically(make_call):
    spaced = make_call(response=f" \n{TAG.replace(': ', ':')}\n")

    assert examine(spaced).completion == TAG


@pytest.mark.parametrize(("track", "text"), [("toolcall", TAG), ("structured", JSON)])
def test_native_tool_calls_become_the_canonical_text(make_call, track, text):
    example = examine(make_call(track=track, response="Let me see.", tool_calls=(WEATHER,)))

    assert example.completion == text


def test_parallel_native_calls_keep_their_order(make_call):
    time = ToolUse(name="get_time", arguments={"city": "Rio"})
    example = examine(make_call(track=None, response=None, tool_calls=(time, WEATHER)))

    assert example.track == "toolcall"
    assert example.calls == (time, WEATHER)


def test_a_structured_answer_without_tools_cannot_be_checked_and_is_kept(make_call):
    call = make_call(track="structured", tools=(), response='{"name": "any", "arguments": {}}')

    assert drop_reason(call) is None


def test_a_whole_number_written_as_a_float_is_an_integer(make_call):
    assert drop_reason(make_call(**arguments(city="Oslo", days=2.0))) is None


@pytest.mark.parametrize("target", ["#", "#/$defs/none"])
def test_a_reference_that_leads_nowhere_is_a_bad_schema(make_call, target):
    found = drop_reason(make_call(tools=schema(**{"$ref": target}), response=TAG))

    assert found is not None
    assert found[0] == DropReason.TOOL_SCHEMA


@pytest.mark.filterwarnings("default::DeprecationWarning")
def test_a_reference_to_another_document_is_never_fetched(make_call, tmp_path):
    document = tmp_path / "anything.json"
    document.write_text("true")

    found = drop_reason(make_call(tools=schema(**{"$ref": document.as_uri()}), response=TAG))

    assert found is not None
    assert found[0] == DropReason.TOOL_SCHEMA


def test_a_local_reference_is_followed(make_call):
    tools = schema(properties={"city": {"$ref": "#/$defs/c"}}, **{"$defs": {"c": {"const": "X"}}})

    assert drop_reason(make_call(tools=tools, response=TAG))[0] == DropReason.ARGUMENTS


def test_unicode_survives(make_call):
    example = examine(make_call(response=None, **arguments(city="Zürich 東京 🏔")))

    assert example.completion.endswith('{"city": "Zürich 東京 🏔"}</tool_call>')


def test_the_id_follows_from_the_text_alone(make_call):
    one = examine(make_call(1))
    again = examine(make_call(1, id="other", conversation_id="elsewhere", tags={"a": "b"}))
    other = examine(make_call(2))

    assert one.id == again.id != other.id
    assert (one.source_call_id, again.source_call_id) == ("call-0001", "other")


def test_tags_and_domain_travel_with_the_example(make_call):
    example = examine(make_call(tags={"domain": "travel", "agent_name": "mine"}))

    assert example.domain == "travel"
    assert example.tags == {"domain": "travel", "agent_name": "mine", "agent_type": "sub-agent"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"success": False},
        {"finish_reason": "content_filter"},
        {"response": "It is sunny."},
        arguments(city=5),
    ],
)
def test_usable_is_what_can_become_an_example(make_call, changes):
    call = make_call(**changes)
    example, reason = examine(call), why_unusable(call)

    assert reason == (drop_reason(call)[0].value if changes else None)
    assert isinstance(example, Example) == (reason is None)
