"""One output against one example: counts, both views, and the name of what is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

from slm_core.errors import EvaluationError
from slm_core.evaluation.scoring import check_gold, score_row, score_unparsed
from slm_core.prompting.formats import NO_CALL_JSON, NO_CALL_TEXT, render_completion
from slm_core.records import Example, FailureClass, Message, RowScore, Tool, ToolUse, Track

WEATHER = Tool(
    name="get_weather",
    parameters={
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "unit": {"type": "string", "enum": ["C", "F"]},
        },
        "required": ["city"],
    },
)
PING = Tool(name="ping")
PARIS = ToolUse(name="get_weather", arguments={"city": "Paris", "days": 3})


def example(
    *calls: ToolUse,
    track: Track = "toolcall",
    accepted: tuple[dict[str, list[Any]], ...] = (),
    **fields: Any,
) -> Example:
    return Example(
        id=fields.pop("id", "e1"),
        track=track,
        prompt=(Message(role="user", content="q"),),
        tools=(WEATHER, PING),
        completion=render_completion(track, calls),
        calls=calls,
        accepted=accepted,
        conversation_id="c1",
        **fields,
    )


def tag(name: str, **arguments: Any) -> str:
    return f'<tool_call name="{name}">{json.dumps(arguments)}</tool_call>'


def counts(score: RowScore) -> tuple[int, int, int]:
    return score.true_positives, score.predicted, score.gold


F = FailureClass
RIGHT = tag("get_weather", city="Paris", days=3)


@pytest.mark.parametrize(
    ("output", "expected", "failure"),
    [
        (RIGHT, (2, 2, 2), F.NONE),
        (tag("get_weather", city="Paris"), (1, 1, 2), F.WRONG_VALUE),
        (tag("get_weather", city="Rome", days=3), (1, 2, 2), F.WRONG_VALUE),
        (tag("get_weather", city="Paris", days=3, unit="C"), (2, 3, 2), F.WRONG_VALUE),
        (tag("get_weather", city="Paris", days=3, unit="K"), (2, 3, 2), F.NOT_IN_ENUM),
        (tag("get_weather", city="Paris", days=3, date="now"), (2, 3, 2), F.UNKNOWN_PARAMETER),
        (tag("get_weather", city="Paris", days="3"), (1, 2, 2), F.WRONG_TYPE),
        (tag("get_weather", city="Paris", days=3.0), (1, 2, 2), F.WRONG_TYPE),
        (tag("get_weather", days=3), (1, 1, 2), F.MISSING_PARAMETER),
        (tag("get_weather", days="3", date="now"), (0, 2, 2), F.MISSING_PARAMETER),
        (tag("weather", city="Paris", days=3), (0, 2, 2), F.UNKNOWN_TOOL),
        (tag("ping"), (0, 0, 2), F.WRONG_TOOL),
        (f"{RIGHT}\n{RIGHT}", (2, 4, 2), F.CALL_COUNT),
        (f"{RIGHT}\n{tag('ping')}", (2, 2, 2), F.CALL_COUNT),
        (NO_CALL_TEXT, (0, 0, 2), F.CALL_COUNT),
    ],
)
def test_parsed_rows_are_counted_and_their_first_fault_named(output, expected, failure):
    strict, lenient = score_row(example(PARIS), output)
    assert counts(strict) == expected
    assert strict.failure == failure
    assert strict.parsed
    assert strict.exact == (failure == F.NONE)
    assert strict.name_match == (failure not in (F.UNKNOWN_TOOL, F.WRONG_TOOL, F.CALL_COUNT))
    assert lenient == strict


def test_an_unreadable_row_misses_its_gold_and_predicts_nothing():
    strict, lenient = score_row(example(PARIS), "<tool_call>oops</tool_call>")
    assert counts(strict) == counts(lenient) == (0, 0, 2)
    assert (strict.parsed, strict.name_match, strict.exact, strict.f1) == (False, False, False, 0)
    assert strict.failure == F.BAD_JSON


def test_a_fence_costs_the_strict_view_only():
    fenced = f"```json\n{render_completion('structured', [PARIS])}\n```"
    strict, lenient = score_row(example(PARIS, track="structured"), fenced)
    assert (strict.parsed, strict.exact, strict.failure) == (False, False, F.FENCE)
    assert (lenient.parsed, lenient.exact, lenient.failure) == (True, True, F.NONE)
    assert counts(strict) == (0, 0, 2)
    assert counts(lenient) == (2, 2, 2)


@pytest.mark.parametrize(
    ("track", "refusal"), [("structured", NO_CALL_JSON), ("toolcall", NO_CALL_TEXT)]
)
def test_rows_that_want_no_call(track, refusal):
    wanted = example(track=track)
    strict, _ = score_row(wanted, refusal)
    assert (strict.exact, strict.name_match, strict.f1) == (True, True, 1.0)
    prose_strict, prose_lenient = score_row(wanted, "Sorry, I cannot.")
    assert (prose_strict.exact, prose_strict.f1, prose_strict.failure) == (False, 0.0, F.PROSE)
    assert (prose_lenient.exact, prose_lenient.f1) == (True, 1.0)
    over, _ = score_row(wanted, render_completion(track, [PARIS]))
    assert (over.parsed, over.exact, over.failure) == (True, False, F.OVER_CALL)
    assert counts(over) == (0, 2, 0)


def test_an_empty_call_is_right_or_wrong_as_a_whole():
    wanted = example(ToolUse(name="ping", arguments={}))
    right, _ = score_row(wanted, tag("ping"))
    assert (right.exact, counts(right), right.f1) == (True, (0, 0, 0), 1.0)
    for wrong in (NO_CALL_TEXT, f"{tag('ping')}\n{tag('ping')}", "", "{"):
        score, _ = score_row(wanted, wrong)
        assert (score.exact, score.f1) == (False, 0.0)


def test_a_repeated_call_never_gives_a_recall_above_one():
    score, _ = score_row(example(PARIS), "\n".join([RIGHT] * 5))
    assert counts(score) == (2, 10, 2)
    assert not score.exact


def test_extra_arguments_never_pass():
    score, _ = score_row(example(PARIS), tag("get_weather", city="Paris", days=3, unit="C"))
    assert not score.exact
    assert score.f1 == pytest.approx(4 / 5)


def test_true_is_not_one():
    wanted = example(ToolUse(name="get_weather", arguments={"city": "Paris", "days": 1}))
    score, _ = score_row(wanted, tag("get_weather", city="Paris", days=True))
    assert not score.exact
    assert counts(score) == (1, 2, 2)


def test_accepted_values_and_parameters_that_may_be_left_out():
    wanted = example(PARIS, accepted=({"city": ["Paris, France"], "days": [3, None]},))
    assert score_row(wanted, tag("get_weather", city="Paris, France"))[0].exact
    assert score_row(wanted, RIGHT)[0].exact
    wrong, _ = score_row(wanted, tag("get_weather", city="Paris", days=4))
    assert counts(wrong) == (1, 2, 1)


def test_parallel_calls_count_in_any_order():
    rome = ToolUse(name="get_weather", arguments={"city": "Rome"})
    wanted = example(PARIS, rome)
    assert score_row(wanted, render_completion("toolcall", [rome, PARIS]))[0].exact
    fewer, _ = score_row(wanted, render_completion("toolcall", [rome]))
    assert counts(fewer) == (1, 1, 3)
    assert fewer.failure == F.CALL_COUNT


def test_without_tools_no_tool_is_unknown():
    bare = example(PARIS).model_copy(update={"tools": ()})
    assert score_row(bare, tag("weather", city="Paris"))[0].failure == F.WRONG_TOOL


def test_a_row_without_an_answer_is_a_miss_by_its_own_name():
    score = score_unparsed(example(PARIS), F.ERROR)
    assert (counts(score), score.failure) == ((0, 0, 2), F.ERROR)


def test_gold_must_pass_its_own_scorer():
    rome = ToolUse(name="get_weather", arguments={"city": "Rome"})
    good = example(PARIS)
    check_gold([good, example(track="structured"), example(PARIS, rome)])
    fenced = example(PARIS, id="fenced").model_copy(update={"completion": f"```\n{RIGHT}\n```"})
    other = example(PARIS, id="other").model_copy(update={"calls": (rome,)})
    with pytest.raises(EvaluationError, match="2 cases") as caught:
        check_gold([good, fenced, other])
    assert caught.value.context["cases"] == {
        "fenced": F.FENCE.value,
        "other": F.WRONG_VALUE.value,
    }
