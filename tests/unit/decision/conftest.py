"""Evaluations with any scores, built from the headline down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from slm_core.records import (
    TRACKS,
    ArmName,
    ArmResult,
    DomainScore,
    Evaluation,
    Metric,
    PairedDifference,
    Track,
)

HEADLINE: dict[Track, str] = {"structured": "field_f1", "toolcall": "args_f1"}
NAMES: dict[Track, list[str]] = {
    "structured": "json_valid_rate exact_match_rate field_precision field_recall field_f1".split(),
    "toolcall": (
        "valid_call_rate name_match_rate args_exact_rate args_precision args_recall args_f1"
    ).split(),
}


class Build:
    """Makes the parts of an evaluation; intervals are symmetric unless given."""

    @staticmethod
    def metric(value: float, n: int = 400, half: float = 0.02) -> Metric:
        return Metric(value=value, n=n, low=value - half, high=value + half)

    def arm(
        self,
        name: ArmName,
        track: Track,
        value: float,
        *,
        n: int = 400,
        errors: int = 0,
        failures: Mapping[str, int] | None = None,
        metrics: Mapping[str, Metric] | None = None,
    ) -> ArmResult:
        return ArmResult(
            arm=name,
            track=track,
            model=name,
            metrics={key: self.metric(value, n) for key in NAMES[track]} | dict(metrics or {}),
            lenient={},
            failures=dict(failures or {}),
            errors=errors,
            seconds_p50=0.1,
            seconds_p95=0.2,
            cost_per_1000_usd=None,
            rows_sha256="0" * 64,
        )

    def difference(
        self,
        track: Track,
        value: float,
        *,
        a: ArmName = "adapter",
        n: int = 400,
        half: float = 0.015,
    ) -> PairedDifference:
        return PairedDifference(
            track=track,
            metric=HEADLINE[track],
            a=a,
            b="teacher",
            difference=self.metric(value, n, half),
        )

    def track(
        self, track: Track, adapter: float, teacher: float = 0.93, n: int = 400
    ) -> Evaluation:
        """Return the evaluation of one track, with a student at .3."""
        return self.evaluation(
            [
                self.arm("teacher", track, teacher, n=n),
                self.arm("student", track, 0.3, n=n),
                self.arm("adapter", track, adapter, n=n),
            ],
            [
                self.difference(track, adapter - teacher, n=n),
                self.difference(track, 0.3 - teacher, a="student", n=n),
            ],
        )

    def both(self, structured: float, toolcall: float, n: int = 400) -> Evaluation:
        """Return the evaluation of both tracks with these adapter scores."""
        parts = [
            self.track(track, value, n=n)
            for track, value in zip(TRACKS, (structured, toolcall), strict=True)
        ]
        return self.evaluation(
            [arm for part in parts for arm in part.arms],
            [pair for part in parts for pair in part.paired],
        )

    @staticmethod
    def evaluation(arms: Sequence[ArmResult], paired: Sequence[PairedDifference]) -> Evaluation:
        return Evaluation(
            id="ev-1",
            test_set_id="gold-1",
            adapter_id="ad-1",
            arms=tuple(arms),
            paired=tuple(paired),
            details_path="",
            details_sha256="0" * 64,
            spec_digest="0" * 64,
            seed=1,
        )

    def domains(self, *scores: float, n: int = 40, half: float = 0.05) -> list[DomainScore]:
        return [
            DomainScore(domain=f"domain {i}", f1=self.metric(score, n, half))
            for i, score in enumerate(scores)
        ]


@pytest.fixture(scope="session")
def build() -> Build:
    return Build()
