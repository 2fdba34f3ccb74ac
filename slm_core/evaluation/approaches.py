"""Approaches side by side: arms of several evaluations that asked the same questions.

An approach is an arm and its model: the teacher, the bare student, each adapter. Evaluations
of another test set are never put beside each other; they are left out, and said so.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from slm_core.errors import EvaluationError
from slm_core.evaluation.compare import Side, paired_differences
from slm_core.evaluation.evaluate import read_details
from slm_core.evaluation.metrics import draw, tabulate
from slm_core.records import (
    ARMS,
    TRACKS,
    Approach,
    ApproachDifference,
    CaseResult,
    Comparison,
    Evaluation,
    NotCompared,
    Track,
    sha256_hex,
)

log = logging.getLogger(__name__)


def compare_approaches(
    evaluations: Sequence[Evaluation],
    test_set_id: str | None = None,
    *,
    seed: int = 42,
    resamples: int = 2000,
) -> Comparison:
    """Return every approach on one test set, each as its newest evaluation measured it.

    Args:
        evaluations: those to choose from.
        test_set_id: the questions; None takes those of the newest evaluation.
        seed: of the bootstrap behind the differences.
        resamples: of the same.

    Raises:
        EvaluationError: no evaluation is of that test set.
    """
    newest_first = sorted(evaluations, key=lambda one: one.created_at, reverse=True)
    if not newest_first:
        raise EvaluationError("There is no evaluation to compare; run `eval/cep` first.")
    wanted = test_set_id or newest_first[0].test_set_id
    of_test_set = [one for one in newest_first if one.test_set_id == wanted]
    if not of_test_set:
        raise EvaluationError(
            f"None of the {len(newest_first)} evaluations is of the test set {wanted}; they are "
            f"of {', '.join(sorted({one.test_set_id for one in newest_first}))}."
        )
    left_out = [
        NotCompared(evaluation_id=one.id, reason=f"asked other questions: {one.test_set_id}")
        for one in newest_first
        if one.test_set_id != wanted
    ]
    found = _newest_of_each(of_test_set)
    rows, lost = _answers(of_test_set, {one.evaluation_id for one in found})
    left_out += lost
    differences: list[ApproachDifference] = []
    for track in TRACKS:
        there = [a for a in found if a.result.track == track and a.evaluation_id in rows]
        differences += _differences(track, there, rows, seed, resamples)
    return Comparison(
        test_set_id=wanted,
        approaches=tuple(found),
        differences=tuple(differences),
        not_compared=tuple(left_out),
    )


def _newest_of_each(newest_first: Sequence[Evaluation]) -> list[Approach]:
    found: dict[tuple[Track, str], Approach] = {}
    for evaluation in newest_first:
        for result in evaluation.arms:
            name = f"{result.arm}: {result.model}"
            found.setdefault(
                (result.track, name),
                Approach(
                    name=name,
                    evaluation_id=evaluation.id,
                    evaluated_at=evaluation.created_at,
                    result=result,
                ),
            )
    return sorted(
        found.values(),
        key=lambda one: (
            TRACKS.index(one.result.track),
            ARMS.index(one.result.arm),
            one.evaluated_at,
            one.name,
        ),
    )


def _answers(
    evaluations: Sequence[Evaluation], wanted: set[str]
) -> tuple[dict[str, list[CaseResult]], list[NotCompared]]:
    """Return the rows of each wanted evaluation, and those whose file is gone or altered."""
    rows: dict[str, list[CaseResult]] = {}
    lost: list[NotCompared] = []
    for one in evaluations:
        if one.id not in wanted:
            continue
        path = Path(one.details_path)
        try:
            intact = sha256_hex(path.read_bytes()) == one.details_sha256
        except OSError as error:
            reason = f"its answers cannot be read, so no differences: {error}"
        else:
            if intact:
                rows[one.id] = read_details(path)
                continue
            reason = f"its answers were altered, so no differences: {path}"
        lost.append(NotCompared(evaluation_id=one.id, reason=reason))
    return rows, lost


def _differences(
    track: Track,
    approaches: Sequence[Approach],
    rows: dict[str, list[CaseResult]],
    seed: int,
    resamples: int,
) -> list[ApproachDifference]:
    """Return the later of every two minus the earlier, so that an adapter stands first."""
    if len(approaches) < 2:
        return []
    tables = [
        tabulate(
            [
                row
                for row in rows[one.evaluation_id]
                if row.track == track and row.arm == one.result.arm
            ],
            "strict",
        )
        for one in approaches
    ]
    draws = draw(tables, seed=seed, resamples=resamples)
    sides = [
        (one.name, Side(one.result.arm, table, drawn))
        for one, table, drawn in zip(approaches, tables, draws, strict=True)
    ]
    return [
        ApproachDifference(a=a, b=b, paired=paired)
        for (b, below), (a, above) in combinations(sides, 2)
        for paired in paired_differences(track, above, below)
    ]
