"""Do two answers to one question make the same calls?

The scorer of the evaluation, with the answer that was given in the place of the right one.
"""

from __future__ import annotations

from slm_core.evaluation.scoring import score_row
from slm_core.prompting.parse import parse_output
from slm_core.records import Example, FailureClass, Tool, Track, TrafficOutcome


def compare_answers(
    track: Track,
    tools: tuple[Tool, ...],
    given: str,
    other: str,
    finish_reason: str | None = None,
) -> TrafficOutcome:
    """Compare ``other`` with the answer that was ``given``, both read strictly.

    Args:
        track: format of both.
        tools: what could be called; their schemas say which numbers are equal.
        given: what the caller got.
        other: what another model said.
        finish_reason: why ``other`` ended.
    """
    gold = parse_output(given, track)
    if not gold.parsed:
        return TrafficOutcome.INCOMPARABLE
    example = Example(
        id="",
        track=track,
        prompt=(),
        tools=tools,
        completion=given,
        calls=gold.calls,
        conversation_id="",
    )
    strict, _ = score_row(example, other, finish_reason)
    if not strict.parsed:
        return TrafficOutcome.FORMAT
    same = strict.failure is FailureClass.NONE
    return TrafficOutcome.AGREED if same else TrafficOutcome.DISAGREED
