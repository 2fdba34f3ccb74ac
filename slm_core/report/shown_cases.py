"""Choose the test cases that the page shows: what the student wrote before and after."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import ValidationError

from slm_core.records import ArmName, CaseResult, Record, Track

log = logging.getLogger(__name__)

_Outputs = dict[ArmName, CaseResult]


class ShownOutput(Record):
    """What one arm wrote."""

    text: str
    exact: bool
    failure: str
    """Why it is wrong; the class ``none`` when it is right."""


class ShownCase(Record):
    """One test case with the outputs beside one another."""

    case_id: str
    track: Track
    question: str | None
    """Last user turn; None when it is not known."""
    gold: str
    outputs: dict[ArmName, ShownOutput]


def choose_cases(
    details: Path, questions: Mapping[str, str], *, after: ArmName, per_track: int
) -> tuple[ShownCase, ...]:
    """Return up to ``per_track`` cases of each track from an evaluation's details.

    Cases that went from wrong to right come first, but one that is still wrong is always
    among them if there is one: a report that shows only success is no evidence. The choice
    depends on the file alone.

    Args:
        details: JSON Lines of case results. If the file is absent, no case is shown.
        questions: Case id to the last user turn.
        after: The arm to compare with ``student``.
        per_track: How many of each track.
    """
    if per_track == 0 or not details.is_file():
        return ()
    by_case: dict[tuple[Track, str], _Outputs] = {}
    for case in _read(details):
        by_case.setdefault((case.track, case.case_id), {})[case.arm] = case
    tracks = sorted({track for track, _ in by_case})
    return tuple(
        _shown(outputs, questions)
        for track in tracks
        for outputs in _pick([o for (t, _), o in by_case.items() if t == track], after, per_track)
    )


def _pick(cases: list[_Outputs], after: ArmName, size: int) -> list[_Outputs]:
    candidates = [outputs for outputs in cases if after in outputs]
    fixed = [o for o in candidates if o[after].strict.exact and not _exact(o, "student")]
    wrong = [o for o in candidates if not o[after].strict.exact]
    rest = [o for o in candidates if o not in fixed and o not in wrong]
    picked = _one_of_each_failure(fixed) + rest
    if wrong:
        return [*picked[: size - 1], wrong[0], *wrong[1:]][:size] if size > 1 else picked[:1]
    return picked[:size]


def _one_of_each_failure(cases: list[_Outputs]) -> list[_Outputs]:
    """Return ``cases`` with one of each of the student's failures ahead of the others."""
    seen: set[str] = set()
    first: list[_Outputs] = []
    later: list[_Outputs] = []
    for outputs in cases:
        kind = str(outputs["student"].strict.failure) if "student" in outputs else ""
        (later if kind in seen else first).append(outputs)
        seen.add(kind)
    return first + later


def _exact(outputs: _Outputs, arm: ArmName) -> bool:
    return arm in outputs and outputs[arm].strict.exact


def _shown(outputs: _Outputs, questions: Mapping[str, str]) -> ShownCase:
    case = next(iter(outputs.values()))
    return ShownCase(
        case_id=case.case_id,
        track=case.track,
        question=questions.get(case.case_id),
        gold=case.gold,
        outputs={
            arm: ShownOutput(
                text=result.output,
                exact=result.strict.exact,
                failure=str(result.error or result.strict.failure.value),
            )
            for arm, result in outputs.items()
        },
    )


def _read(details: Path) -> Iterable[CaseResult]:
    unreadable = 0
    with details.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                yield CaseResult.model_validate_json(line)
            except ValidationError:
                unreadable += 1
    if unreadable:
        log.warning("case results not readable count=%d file=%s", unreadable, details)
