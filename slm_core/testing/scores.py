"""Evaluations that look like real ones: a good teacher, a student whose format is wrong, the
same student with the CEP, and an adapter that beats the teacher by a little."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from slm_core.records import (
    ARMS,
    TRACKS,
    ArmName,
    ArmResult,
    Evaluation,
    FailureClass,
    Metric,
    PairedDifference,
    Track,
    sha256_hex,
)

MADE_AT = datetime(2026, 3, 14, 3, 0, tzinfo=UTC)

STRICT_SCORES: Mapping[Track, Mapping[ArmName, Sequence[float]]] = {
    "structured": {
        "teacher": (0.96, 0.80, 0.91, 0.90, 0.905, 0.893),
        "student": (0.02, 0.00, 0.41, 0.01, 0.02, 0.017),
        "student_cep": (0.44, 0.30, 0.78, 0.38, 0.511, 0.402),
        "adapter": (1.00, 0.94, 0.98, 0.97, 0.975, 0.969),
    },
    "toolcall": {
        "teacher": (0.94, 0.90, 0.78, 0.90, 0.88, 0.889, 0.871),
        "student": (0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00),
        "student_cep": (0.36, 0.34, 0.22, 0.71, 0.30, 0.422, 0.318),
        "adapter": (0.98, 0.96, 0.84, 0.93, 0.92, 0.925, 0.914),
    },
}
METRIC_NAMES: Mapping[Track, Sequence[str]] = {
    "structured": (
        "json_valid_rate",
        "exact_match_rate",
        "field_precision",
        "field_recall",
        "field_f1",
        "macro_field_f1",
    ),
    "toolcall": (
        "valid_call_rate",
        "name_match_rate",
        "args_exact_rate",
        "args_precision",
        "args_recall",
        "args_f1",
        "macro_args_f1",
    ),
}
FAILURES: Mapping[ArmName, Mapping[Track, Mapping[FailureClass, int]]] = {
    "teacher": {
        "structured": {FailureClass.WRONG_VALUE: 8, FailureClass.EXTRA_TEXT: 2},
        "toolcall": {FailureClass.WRONG_VALUE: 8, FailureClass.MISSING_CLOSE: 3},
    },
    "student": {
        "structured": {FailureClass.FENCE: 31, FailureClass.WRONG_KEYS: 18, FailureClass.PROSE: 1},
        "toolcall": {FailureClass.SELF_CLOSING: 27, FailureClass.ATTRIBUTE_ARGUMENTS: 23},
    },
    "student_cep": {
        "structured": {
            FailureClass.FENCE: 12,
            FailureClass.WRONG_KEYS: 16,
            FailureClass.WRONG_VALUE: 7,
        },
        "toolcall": {
            FailureClass.SELF_CLOSING: 19,
            FailureClass.BARE_JSON: 13,
            FailureClass.WRONG_VALUE: 7,
        },
    },
    "adapter": {
        "structured": {FailureClass.WRONG_VALUE: 3},
        "toolcall": {FailureClass.WRONG_VALUE: 7, FailureClass.MISSING_CLOSE: 1},
    },
}
SPEED: Mapping[ArmName, tuple[float, float, float | None]] = {
    "teacher": (0.812, 1.604, 4.25),
    "student": (0.094, 0.151, 0.06),
    "student_cep": (0.108, 0.166, 0.07),
    "adapter": (0.061, 0.088, 0.05),
}


def make_metric(value: float, n: int = 50) -> Metric:
    """Return a metric with the Wilson interval of a rate of ``n`` rows."""
    z = 1.96
    centre = (value + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(value * (1 - value) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Metric(value=value, n=n, low=max(0.0, centre - half), high=min(1.0, centre + half))


def make_arm(track: Track, arm: ArmName, n: int = 50, **changes: Any) -> ArmResult:
    """Return the scores of one arm; lenient ones are a little better, as they are."""
    strict = dict(zip(METRIC_NAMES[track], STRICT_SCORES[track][arm], strict=True))
    lenient = {
        name: value + (1 - value) * (0.7 if arm == "student" else 0.1)
        for name, value in strict.items()
    }
    p50, p95, cost = SPEED[arm]
    values: dict[str, Any] = {
        "arm": arm,
        "track": track,
        "model": {"teacher": "gpt-4o", "adapter": "nano-student + adapter-9c02"}.get(
            arm, "nano-student"
        ),
        "metrics": {name: make_metric(value, n) for name, value in strict.items()},
        "lenient": {name: make_metric(value, n) for name, value in lenient.items()},
        "failures": {str(kind): count for kind, count in FAILURES[arm][track].items()},
        "errors": 0,
        "seconds_p50": p50,
        "seconds_p95": p95,
        "cost_per_1000_usd": cost,
        "rows_sha256": sha256_hex(f"{track} {arm}"),
    }
    return ArmResult(**(values | changes))


def make_difference(
    track: Track, metric: str, a: ArmName, b: ArmName, n: int = 50
) -> PairedDifference:
    """Return how two arms differ, from the scores above."""
    at = METRIC_NAMES[track].index(metric)
    value = STRICT_SCORES[track][a][at] - STRICT_SCORES[track][b][at]
    rate = metric.endswith("_rate")
    return PairedDifference(
        track=track,
        metric=metric,
        a=a,
        b=b,
        difference=Metric(value=value, n=n, low=value - 0.06, high=min(1.0, value + 0.05)),
        mcnemar_p=min(1.0, math.exp(-abs(value) * n)) if rate else None,
        a_only=max(0, round(value * n)) + 1 if rate else 0,
        b_only=max(0, round(-value * n)) + 1 if rate else 0,
    )


def make_evaluation(arms: Sequence[ArmName] = ARMS, **changes: Any) -> Evaluation:
    """Return an evaluation of ``arms`` on both tracks, 50 rows each."""
    pairs: list[tuple[ArmName, ArmName]] = [
        ("adapter", "teacher"),
        ("adapter", "student"),
        ("student", "teacher"),
    ]
    values: dict[str, Any] = {
        "id": "evaluation-e3d0a7b15c924f68",
        "test_set_id": "testset-2b90e1d7c46f3a58",
        "adapter_id": "adapter-9c02d4e1f3a85b67" if "adapter" in arms else None,
        "arms": tuple(make_arm(track, arm) for track in TRACKS for arm in arms),
        "paired": tuple(
            make_difference(track, metric, a, b)
            for track in TRACKS
            for a, b in pairs
            if a in arms and b in arms
            for metric in METRIC_NAMES[track]
        ),
        "details_path": "/data/evaluations/evaluation-e3d0a7b1/details.jsonl",
        "details_sha256": sha256_hex("details"),
        "spec_digest": "spec-c0ffee12ab34cd56",
        "seed": 42,
        "created_at": MADE_AT,
    }
    return Evaluation(**(values | changes))
