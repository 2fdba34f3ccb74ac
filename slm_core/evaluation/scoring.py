"""Scores one output against one example, in the strict and in the lenient view.

Unparsed rows stay: their gold counts as missed, and they predict nothing. What is wrong with
a row is named by the first failure class that applies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain, repeat

from slm_core.errors import EvaluationError
from slm_core.evaluation.matching import GoldCall, score_calls
from slm_core.evaluation.tool_schema import parameters_of
from slm_core.prompting.parse import ParsedOutput, parse_output
from slm_core.records import Example, FailureClass, RowScore, Tool, ToolUse


def score_row(
    example: Example, output_text: str, finish_reason: str | None = None
) -> tuple[RowScore, RowScore]:
    """Return the strict and the lenient score of one output."""
    track = example.track
    strict = parse_output(output_text, track, finish_reason=finish_reason)
    score = _score(example, strict)
    if strict.parsed:
        return score, score
    lenient = parse_output(output_text, track, view="lenient", finish_reason=finish_reason)
    return score, _score(example, lenient)


def score_unparsed(example: Example, failure: FailureClass) -> RowScore:
    """Return the score of a row that could not be read, or has no answer: all is missed."""
    return RowScore(
        parsed=False,
        name_match=False,
        exact=False,
        true_positives=0,
        predicted=0,
        gold=sum(score.gold for score in score_calls(_gold_calls(example), (), ())),
        failure=failure,
    )


def check_gold(examples: Iterable[Example]) -> None:
    """Check that every gold answer passes its own scorer.

    Raises:
        EvaluationError: some do not; ``context["cases"]`` says which, and why.
    """
    bad: dict[str, str] = {}
    for example in examples:
        strict, _ = score_row(example, example.completion)
        if not strict.exact:
            bad[example.id] = strict.failure.value
    if bad:
        raise EvaluationError(
            f"The gold answers of {len(bad)} cases do not pass their own scorer. Correct their "
            "completion, calls or accepted values, or leave them out.",
            cases=bad,
        )


def _score(example: Example, output: ParsedOutput) -> RowScore:
    if not output.parsed:
        return score_unparsed(example, output.failure)
    scores = score_calls(_gold_calls(example), output.calls, example.tools)
    name_match = _names(output.calls) == _names(example.calls)
    exact = name_match and all(score.exact for score in scores)
    return RowScore(
        parsed=True,
        name_match=name_match,
        exact=exact,
        true_positives=sum(score.true_positives for score in scores),
        predicted=sum(len(call.arguments) for call in output.calls),
        gold=sum(score.gold for score in scores),
        failure=FailureClass.NONE if exact else _first_failure(example, output.calls),
    )


def _gold_calls(example: Example) -> list[GoldCall]:
    # Calls beyond the end of ``accepted`` accept their own values only.
    accepted = chain(example.accepted, repeat({}))
    return [GoldCall(call, values) for call, values in zip(example.calls, accepted, strict=False)]


def _names(calls: Sequence[ToolUse]) -> Counter[str]:
    return Counter(call.name for call in calls)


def _first_failure(example: Example, calls: Sequence[ToolUse]) -> FailureClass:
    """Return the first class that applies to parsed calls that are not right."""
    if not example.calls:
        return FailureClass.OVER_CALL
    tools = {tool.name: tool for tool in example.tools}
    found = {fault for call in calls for fault in _schema_failures(call, tools)}
    given, wanted = _names(calls), _names(example.calls)
    if given == wanted:
        found.add(FailureClass.WRONG_VALUE)
    elif given - wanted and wanted - given:
        found.add(FailureClass.WRONG_TOOL)
    else:
        found.add(FailureClass.CALL_COUNT)
    return next(failure for failure in FailureClass if failure in found)


def _schema_failures(call: ToolUse, tools: dict[str, Tool]) -> set[FailureClass]:
    if call.name not in tools:
        # An example without tools says nothing about which ones exist.
        return {FailureClass.UNKNOWN_TOOL} if tools else set()
    node = parameters_of(tools[call.name])
    found: set[FailureClass] = set()
    if node.required() - call.arguments.keys():
        found.add(FailureClass.MISSING_PARAMETER)
    for name, value in call.arguments.items():
        if not node.knows(name):
            found.add(FailureClass.UNKNOWN_PARAMETER)
        elif fault := node.property(name).fault(value):
            found.add(fault)
    return found
