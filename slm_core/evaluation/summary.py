"""Scored rows to the tables of an evaluation: every arm on every track, and their differences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from slm_core.evaluation.compare import Side, paired_differences
from slm_core.evaluation.cost import cost_per_1000_usd, latency
from slm_core.evaluation.metrics import Table, draw, measure, tabulate
from slm_core.evaluation.spec import EvaluationSpec
from slm_core.records import (
    TRACKS,
    ArmName,
    ArmResult,
    CaseResult,
    Metric,
    PairedDifference,
    Track,
    canonical_json,
    sha256_hex,
)


class Summary(NamedTuple):
    """All numbers of an evaluation."""

    arms: tuple[ArmResult, ...]
    paired: tuple[PairedDifference, ...]


def summarise(
    labels: Mapping[ArmName, str],
    results: Mapping[ArmName, Sequence[CaseResult]],
    spec: EvaluationSpec,
) -> Summary:
    """Return the scores of each arm on each track that has cases, and the paired differences.

    ``labels`` names the model of each arm.

    Raises:
        EvaluationError: the arms were not run on the same cases.
    """
    arms: list[ArmResult] = []
    paired: list[PairedDifference] = []
    for track in TRACKS:
        rows: dict[ArmName, list[CaseResult]] = {
            arm: [r for r in results[arm] if r.track == track] for arm in labels
        }
        if not any(rows.values()):
            continue
        strict: dict[ArmName, Table] = {arm: tabulate(rows[arm], "strict") for arm in labels}
        lenient: dict[ArmName, Table] = {arm: tabulate(rows[arm], "lenient") for arm in labels}
        drawn = draw(
            [*strict.values(), *lenient.values()], seed=spec.seed, resamples=spec.resamples
        )
        strict_draws = dict(zip(labels, drawn[: len(labels)], strict=True))
        lenient_draws = dict(zip(labels, drawn[len(labels) :], strict=True))
        for arm, label in labels.items():
            arms.append(
                _arm_result(
                    arm,
                    track,
                    label,
                    rows[arm],
                    strict=measure(track, strict[arm], strict_draws[arm]),
                    lenient=measure(track, lenient[arm], lenient_draws[arm]),
                )
            )
        for a, b in spec.comparisons:
            if a in labels and b in labels:
                sides = (Side(x, strict[x], strict_draws[x]) for x in (a, b))
                paired += paired_differences(track, *sides)
    return Summary(tuple(arms), tuple(paired))


def _arm_result(
    arm: ArmName,
    track: Track,
    label: str,
    rows: Sequence[CaseResult],
    *,
    strict: dict[str, Metric],
    lenient: dict[str, Metric],
) -> ArmResult:
    failures = Counter(row.strict.failure.value for row in rows if not row.strict.exact)
    seconds = latency(rows)
    outputs = [[row.case_id, row.output, row.error is not None] for row in rows]
    return ArmResult(
        arm=arm,
        track=track,
        model=label,
        metrics=strict,
        lenient=lenient,
        failures=dict(sorted(failures.items())),
        errors=sum(row.error is not None for row in rows),
        seconds_p50=seconds.p50,
        seconds_p95=seconds.p95,
        cost_per_1000_usd=cost_per_1000_usd(rows),
        rows_sha256=sha256_hex(canonical_json(outputs)),
    )
