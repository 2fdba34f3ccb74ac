"""Do two answers to one question make the same calls?

The scorer of the evaluation, with the answer that was given in the place of the right one.
What was given is read leniently on the track ``structured``: a fence around its JSON is no call
of another kind. On ``toolcall`` a teacher may also just speak, and then an example of a call in
its prose is no call, so it is read strictly.
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
    """Compare ``other``, read strictly, with the answer that was ``given``.

    A call or refusal where plain text was given disagrees. Nothing is said about an answer in no
    format where none was given in one, nor where nothing was given at all.

    Args:
        track: format of both.
        tools: what could be called; their schemas say which numbers are equal.
        given: what the caller got.
        other: what another model said.
        finish_reason: why ``other`` ended.
    """
    gold = parse_output(given, track, view="lenient" if track == "structured" else "strict")
    if not gold.parsed:
        said = parse_output(other, track, finish_reason=finish_reason)
        spoke = bool(given.strip())
        return TrafficOutcome.DISAGREED if spoke and said.parsed else TrafficOutcome.INCOMPARABLE
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
