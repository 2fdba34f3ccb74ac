"""Two answers agree when they make the same calls, whatever their letters look like."""

from __future__ import annotations

import pytest

from slm_core.evaluation import compare_answers
from slm_core.prompting.formats import NO_CALL_JSON, NO_CALL_TEXT
from slm_core.records import Tool, Track, TrafficOutcome

PAY = Tool(
    name="pay",
    parameters={
        "type": "object",
        "properties": {"sum": {"type": "number"}, "to": {"type": "string"}},
    },
)
GIVEN = '{"name": "pay", "arguments": {"sum": 5, "to": "ann"}}'


@pytest.mark.parametrize(
    ("other", "outcome"),
    [
        (GIVEN, TrafficOutcome.AGREED),
        ('{"arguments":{"to":"ann","sum":5.0},"name":"pay"}', TrafficOutcome.AGREED),
        (GIVEN.replace("5", "6"), TrafficOutcome.DISAGREED),
        (GIVEN.replace("pay", "get"), TrafficOutcome.DISAGREED),
        ('{"name": null, "arguments": {}}', TrafficOutcome.DISAGREED),
        (f"```json\n{GIVEN}\n```", TrafficOutcome.FORMAT),
        (GIVEN[:-4], TrafficOutcome.FORMAT),
        ("", TrafficOutcome.FORMAT),
    ],
)
def test_structured_answers(other: str, outcome: TrafficOutcome) -> None:
    assert compare_answers("structured", (PAY,), GIVEN, other) is outcome


def test_several_calls_agree_in_any_order() -> None:
    calls = [f'<tool_call name="pay">{{"sum": {n}}}</tool_call>' for n in (1, 2)]
    assert compare_answers("toolcall", (PAY,), "\n".join(calls), "\n".join(calls[::-1])) is (
        TrafficOutcome.AGREED
    )
    assert compare_answers("toolcall", (PAY,), "\n".join(calls), calls[0]) is (
        TrafficOutcome.DISAGREED
    )


CALL = '<tool_call name="pay">{"sum": 5}</tool_call>'
SPOKEN = "You could call pay, once I know the sum."


@pytest.mark.parametrize(
    ("track", "given", "other", "outcome"),
    [
        ("toolcall", SPOKEN, CALL, TrafficOutcome.DISAGREED),
        ("toolcall", SPOKEN, NO_CALL_TEXT, TrafficOutcome.DISAGREED),
        ("toolcall", SPOKEN, "Which sum?", TrafficOutcome.INCOMPARABLE),
        ("toolcall", f"For example: {CALL}", CALL, TrafficOutcome.DISAGREED),
        ("toolcall", "", CALL, TrafficOutcome.INCOMPARABLE),
        ("structured", "Of course!", GIVEN, TrafficOutcome.DISAGREED),
        ("structured", f"```json\n{GIVEN}\n```", GIVEN, TrafficOutcome.AGREED),
        ("structured", f"```json\n{GIVEN}\n```", NO_CALL_JSON, TrafficOutcome.DISAGREED),
    ],
)
def test_what_was_given_need_not_be_in_the_exact_format(
    track: Track, given: str, other: str, outcome: TrafficOutcome
) -> None:
    assert compare_answers(track, (PAY,), given, other) is outcome
