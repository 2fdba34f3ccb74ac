"""Reading answers back: exact format, habits of instruct models, hostile text."""

from __future__ import annotations

import gc
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_core.prompting.formats import NO_CALL_JSON, NO_CALL_TEXT, render_completion
from slm_core.prompting.parse import infer_track, parse_output
from slm_core.records import FailureClass as F
from slm_core.records import ToolUse, Track

CALL = ToolUse(name="get_weather", arguments={"city": "Paris", "days": 3})
STRUCTURED = render_completion("structured", [CALL])
TOOLCALL = render_completion("toolcall", [CALL])
BODY = '{"city": "Paris", "days": 3}'
SINGLE = "{'city': 'Paris', 'days': 3}"


def lenient_calls(text: str, track: Track) -> list[ToolUse]:
    return list(parse_output(text, track, view="lenient").calls)


@pytest.mark.parametrize(
    ("text", "track"),
    [
        (STRUCTURED, "structured"),
        (f" \n{STRUCTURED}\n\n", "structured"),
        ('{"arguments":' + BODY + ',"name":"get_weather"}', "structured"),
        (TOOLCALL, "toolcall"),
        (f"\n{TOOLCALL}\t", "toolcall"),
        (f'<tool_call name="get_weather">\n{BODY}\n</tool_call>', "toolcall"),
    ],
)
@pytest.mark.parametrize("view", ["strict", "lenient"])
def test_exact_format_is_read_in_both_views(text, track, view):
    found = parse_output(text, track, view=view)
    assert found == ((CALL,), True, False, F.NONE, ())
    assert infer_track(text) == track


def test_several_tool_calls_need_only_white_space_between():
    other = ToolUse(name="maps.route-2", arguments={})
    text = render_completion("toolcall", [CALL, other, CALL])
    assert parse_output(text, "toolcall").calls == (CALL, other, CALL)
    assert parse_output(text.replace("\n", ""), "toolcall").calls == (CALL, other, CALL)
    assert not parse_output(text.replace("\n", ", "), "toolcall").parsed


@pytest.mark.parametrize(
    "inside", ["</tool_call>", '</tool_call><tool_call name="x">{}', '"}</tool_call>', "\\", "```"]
)
def test_a_delimiter_inside_a_string_does_not_end_the_call(inside):
    call = ToolUse(name="search", arguments={"query": inside, "nested": [{"q": inside}]})
    assert parse_output(render_completion("toolcall", [call, call]), "toolcall").calls == (
        call,
        call,
    )
    assert parse_output(render_completion("structured", [call]), "structured").calls == (call,)


def test_each_track_has_its_own_refusal():
    for track, text in (("structured", NO_CALL_JSON), ("toolcall", NO_CALL_TEXT)):
        assert parse_output(f"{text}\n", track) == ((), True, True, F.NONE, ())
        assert infer_track(text) == track
    assert parse_output(NO_CALL_TEXT, "structured").failure == F.PROSE
    assert parse_output(NO_CALL_JSON, "toolcall").failure == F.BARE_JSON
    assert parse_output(NO_CALL_TEXT, "structured", view="lenient").no_call
    assert parse_output(NO_CALL_JSON, "toolcall", view="lenient").no_call


HABITS = [
    # text, failure on structured, failure on toolcall
    (f"```json\n{STRUCTURED}\n```", F.FENCE, F.FENCE),
    (f"```\n{TOOLCALL}\n```", F.FENCE, F.FENCE),
    (f"Sure, here it is:\n```json\n{STRUCTURED}\n```\nAnything else?", F.FENCE, F.FENCE),
    (f"<tools>\n{STRUCTURED}\n</tools>", F.FOREIGN_TAG, F.FOREIGN_TAG),
    (f"<function=get_weather>{BODY}</function>", F.FOREIGN_TAG, F.FOREIGN_TAG),
    (f'<function name="get_weather">\n{BODY}\n</function>', F.FOREIGN_TAG, F.FOREIGN_TAG),
    (f"functools[{STRUCTURED}]", F.FOREIGN_TAG, F.FOREIGN_TAG),
    (f"<tool_call name='get_weather'>{BODY}</tool_call>", F.FOREIGN_TAG, F.FOREIGN_TAG),
    (f"<tool_call name=\"get_weather\" args='{BODY}' />", F.FOREIGN_TAG, F.SELF_CLOSING),
    (f'<tool_call name="get_weather" arguments="{BODY}"/>', F.FOREIGN_TAG, F.SELF_CLOSING),
    (f'<tool_call name="get_weather" arguments={BODY} />', F.FOREIGN_TAG, F.SELF_CLOSING),
    (
        f'<tool_call name="get_weather" arguments="{SINGLE}"></tool_call>',
        F.FOREIGN_TAG,
        F.ATTRIBUTE_ARGUMENTS,
    ),
    (
        f'<tool_call name="get_weather" args={json.dumps(BODY)}></tool_call>',
        F.FOREIGN_TAG,
        F.ATTRIBUTE_ARGUMENTS,
    ),
    (
        '<tool_call name="get_weather" args="{&quot;city&quot;: &quot;Paris&quot;, '
        '&quot;days&quot;: 3}"></tool_call>',
        F.FOREIGN_TAG,
        F.ATTRIBUTE_ARGUMENTS,
    ),
    (f"<tool_call>\n{STRUCTURED}\n</tool_call>", F.FOREIGN_TAG, F.HERMES_BODY),
    (f'<tool_call name="get_weather">{STRUCTURED}</tool_call>', F.FOREIGN_TAG, F.HERMES_BODY),
    (f'<tool_call name="get_weather">{BODY}', F.FOREIGN_TAG, F.MISSING_CLOSE),
    (f'<tool_call name="get_weather">{BODY}</tool>', F.FOREIGN_TAG, F.MISSING_CLOSE),
    (
        f'<tool_call name="get_weather"><tool_call name="get_weather">{BODY}</tool_call>',
        F.FOREIGN_TAG,
        F.MISSING_CLOSE,
    ),
    (f'<tool_call name="get_weather">{SINGLE}</tool_call>', F.FOREIGN_TAG, F.PYTHON_LITERAL),
    (f"{{'name': 'get_weather', 'arguments': {SINGLE}}}", F.PYTHON_LITERAL, F.PYTHON_LITERAL),
    (f'{{"name": "get_weather", "arguments": {SINGLE},}}', F.PYTHON_LITERAL, F.PYTHON_LITERAL),
    (STRUCTURED, F.NONE, F.BARE_JSON),
    (f'{{"function": "get_weather", "params": {BODY}}}', F.WRONG_KEYS, F.BARE_JSON),
    (f'{{"tool": "get_weather", "input": {BODY}}}', F.WRONG_KEYS, F.BARE_JSON),
    (f'{{"type": "function", "function": {STRUCTURED}}}', F.WRONG_KEYS, F.BARE_JSON),
    (f"[{STRUCTURED}]", F.WRONG_KEYS, F.BARE_JSON),
    (
        f'{{"name": "get_weather", "arguments": {json.dumps(BODY)}}}',
        F.DOUBLE_ENCODED,
        F.BARE_JSON,
    ),
    (
        f'<tool_call name="get_weather">{json.dumps(BODY)}</tool_call>',
        F.FOREIGN_TAG,
        F.DOUBLE_ENCODED,
    ),
    (f"I will look. {STRUCTURED} Done: {{it rains}}.", F.EXTRA_TEXT, F.BARE_JSON),
    (f"I will look.\n{TOOLCALL}", F.FOREIGN_TAG, F.EXTRA_TEXT),
    (f"{TOOLCALL}\nThe result is 17 degrees.", F.FOREIGN_TAG, F.EXTRA_TEXT),
    (f"{TOOLCALL}</tool_call>", F.FOREIGN_TAG, F.EXTRA_TEXT),
]


@pytest.mark.parametrize(("text", "on_structured", "on_toolcall"), HABITS)
def test_habits_fail_strictly_by_name_and_are_read_leniently(text, on_structured, on_toolcall):
    for track, failure in (("structured", on_structured), ("toolcall", on_toolcall)):
        strict = parse_output(text, track)
        assert strict.failure == failure
        assert strict.parsed == (failure == F.NONE)
        assert strict.calls == ((CALL,) if strict.parsed else ())
        lenient = parse_output(text, track, view="lenient")
        assert lenient.calls == (CALL,)
        assert (lenient.parsed, lenient.failure) == (True, F.NONE)
        assert lenient.flags == strict.flags


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ("", F.EMPTY),
        (" \n", F.EMPTY),
        (TOOLCALL[:-25], F.TRUNCATED),
        ('<tool_call name="get_wea', F.TRUNCATED),
        ('{"name": "get_weather", "arguments": {"city": "Par', F.TRUNCATED),
        ('{"name": "f", "arguments": {"a": 5 * 3}}', F.BAD_JSON),
        ('{"name": "f", "arguments": {"a": NaN}}', F.BAD_JSON),
        ('{"name": "f", "arguments": {"a": 1e999}}', F.BAD_JSON),
        ('{"name": "f", "arguments": {"a": 1, "a": 2}}', F.BAD_JSON),
        ('{"name": "f", "arguments": {"a": "\\ud800"}}', F.BAD_JSON),
        ('{"name": "f", "arguments": ' + '{"a":' * 150 + "1" + "}" * 151, F.BAD_JSON),
        ("{name: f}", F.BAD_JSON),
        ('{"name": "f"}', F.WRONG_KEYS),
        ('{"name": "f", "arguments": null}', F.WRONG_KEYS),
        ('{"name": "f", "arguments": [1]}', F.WRONG_KEYS),
        ('{"name": "f", "arguments": "{\\"a\\": 1} and more"}', F.WRONG_KEYS),
        ('{"city": "Paris"}', F.WRONG_KEYS),
    ],
)
def test_what_cannot_be_read_is_no_call_in_either_view(text, failure):
    track: Track = "toolcall" if text.startswith("<") else "structured"
    for view in ("strict", "lenient"):
        found = parse_output(text, track, view=view)
        assert (found.calls, found.parsed, found.no_call) == ((), False, False)
        assert found.failure == failure


def test_prose_is_a_refusal_only_in_the_lenient_view():
    text = "None of these tools can book a flight {yet}."
    for track in ("structured", "toolcall"):
        assert parse_output(text, track) == ((), False, False, F.PROSE, (F.PROSE,))
        assert parse_output(text, track, view="lenient") == ((), True, True, F.NONE, (F.PROSE,))
    assert infer_track(text) is None


def test_an_unreadable_attempt_is_not_a_refusal():
    for text in ("<tool_call>not JSON</tool_call>", "call me as <tool_call"):
        found = parse_output(text, "toolcall", view="lenient")
        assert (found.parsed, found.no_call) == (False, False)


def test_a_good_call_beside_a_broken_one_is_kept_leniently():
    text = f'{TOOLCALL}\n<tool_call name="f">oops</tool_call>'
    assert lenient_calls(text, "toolcall") == [CALL]
    assert F.BAD_JSON in parse_output(text, "toolcall").flags


def test_length_as_finish_reason_is_flagged_but_a_complete_text_still_counts():
    whole = parse_output(TOOLCALL, "toolcall", finish_reason="length")
    assert whole == ((CALL,), True, False, F.NONE, (F.TRUNCATED,))
    prose = parse_output("I think that", "toolcall", view="lenient", finish_reason="length")
    assert (prose.parsed, prose.failure) == (False, F.TRUNCATED)
    assert parse_output(TOOLCALL, "toolcall", finish_reason="stop").flags == ()


def test_python_literals_keep_their_values():
    text = r"""<tool_call name="f">{'a': True, 'b': None, "c": "it's", 'd': 'it\'s "x"\x41',
        'e': ['True', "None,]", False,], 'f': '\d\n'}</tool_call>"""
    assert lenient_calls(text, "toolcall")[0].arguments == {
        "a": True,
        "b": None,
        "c": "it's",
        "d": 'it\'s "x"A',
        "e": ["True", "None,]", False],
        "f": "\\d\n",
    }


def test_python_code_is_never_run(tmp_path):
    victim = tmp_path / "ran"
    code = f"{{'name': 'f', 'arguments': {{'a': open({str(victim)!r}, 'w')}}}}"
    assert lenient_calls(code, "structured") == []
    assert not victim.exists()


def test_attributes_are_arguments_of_a_self_closing_tag_without_any():
    found = parse_output('<tool_call name="f" zipCode="01234" />', "toolcall", view="lenient")
    assert found.calls == (ToolUse(name="f", arguments={"zipCode": "01234"}),)
    assert found.flags == (F.SELF_CLOSING, F.ATTRIBUTE_ARGUMENTS)
    empty = parse_output('<tool_call name="f"/>', "toolcall", view="lenient")
    assert empty.calls == (ToolUse(name="f", arguments={}),)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
calls = st.builds(
    ToolUse,
    name=st.from_regex(r"[A-Za-z0-9_.\-]+", fullmatch=True),
    arguments=st.dictionaries(st.text(), json_values, max_size=4),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(calls, min_size=1, max_size=3))
def test_what_is_rendered_reads_back(made):
    found = parse_output(render_completion("toolcall", made), "toolcall").calls
    assert [_typed(c) for c in found] == [_typed(c) for c in made]
    one = parse_output(render_completion("structured", made[:1]), "structured").calls
    assert [_typed(c) for c in one] == [_typed(made[0])]


def _typed(call: ToolUse) -> str:
    return repr((call.name, call.arguments))


FRAGMENTS = st.sampled_from(
    [
        *('<tool_call name="f">', "<tool_call", "</tool_call>", "<function=g>", "/>", ">", "```"),
        *('{"name": "f", "arguments": ', '"{', "{'a': True", "}", "{", "[", "]", '"', "'", "\\"),
        *(' args="', "=", ",", ":", "\\u0041", "\\ud800", "\ud800", "NaN", "1e999", "-", "None"),
        *(NO_CALL_TEXT, NO_CALL_JSON, "&quot;", "functools[", " ", "\n", "\x00", "é"),
    ]
)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(FRAGMENTS, max_size=25).map("".join) | st.text(),
    st.sampled_from(["structured", "toolcall"]),
)
def test_any_text_gets_an_answer_that_holds_together(text, track):
    strict = parse_output(text, track)
    lenient = parse_output(text, track, view="lenient")
    for found in (strict, lenient):
        assert found.parsed == bool(found.calls or found.no_call)
        assert not (found.calls and found.no_call)
        assert found.parsed == (found.failure == F.NONE)
        assert list(found.flags) == [f for f in F if f in found.flags]
        assert F.NONE not in found.flags
        for call in found.calls:
            call.model_dump_json()
    if strict.parsed:
        assert lenient == strict
    else:
        assert strict.failure == strict.flags[0]


@pytest.fixture
def few_objects():
    """Hide the objects of other tests from the collector: a look at all of them takes a second."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize(
    "unit",
    [
        *("<tool_call", '<tool_call name="f">', '<tool_call a="', "</tool_call>", "{", "[", '{"'),
        *('{"a":', "[{", '"', "'", '{"\\"', "\"'", '{"a",', "{'a': ", " ", "```"),
        '<tool_call name="f">{}</tool_call>',
        '<tool_call name="f" args="{',
    ],
)
def test_a_megabyte_of_hostile_text_is_read_in_under_a_second(unit, few_objects):
    for text in (unit * (1_000_000 // len(unit)), '<tool_call name="f">{"a": ' + unit * 100_000):
        for track in ("structured", "toolcall"):
            start = time.process_time()
            parse_output(text, track, view="lenient")
            assert time.process_time() - start < 1


@pytest.mark.skipif("SLM_SHARED_DATA" not in os.environ, reason="SLM_SHARED_DATA is not set")
class TestRealOutputs:
    """Real outputs and gold answers, where a folder of them lies on this machine."""

    # Arguments that are not an object are no call; complete arguments without the closing
    # tag are one (vLLM reads them, SGLang drops them).
    OUR_POLICY = frozenset({"vllm-006", "vllm-007", "vllm-008", "vllm-009", "sglang-064"})

    def test_parser_cases_of_serving_engines(self):
        cases = self.rows("eval/parser_cases/cases.jsonl")
        other = {
            case["id"]
            for case in cases
            if case["expected_calls"] is not None
            and case["expected_calls"]
            != [c.model_dump() for c in lenient_calls(case["model_output"], "toolcall")]
        }
        assert len(cases) > 90
        assert other == self.OUR_POLICY

    @pytest.mark.parametrize("name", ["simple_python", "multiple", "parallel"])
    def test_gold_calls_round_trip(self, name):
        rows = self.rows(f"eval/bfcl/possible_answer/BFCL_v4_{name}.json")
        for row in rows:
            made = [
                ToolUse(name=tool, arguments={k: v[0] for k, v in values.items()})
                for call in row["ground_truth"]
                for tool, values in call.items()
            ]
            assert list(parse_output(render_completion("toolcall", made), "toolcall").calls) == made

    @staticmethod
    def rows(name: str) -> list[dict[str, Any]]:
        path = Path(os.environ["SLM_SHARED_DATA"]) / name
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
