"""What is known about one track, in the words that the gates use."""

from __future__ import annotations

from typing import NamedTuple

from slm_core.decision.spec import DecisionSpec
from slm_core.records import ArmName, ArmResult, DomainScore, Evaluation, Metric, Track


class MetricNames(NamedTuple):
    """How one track calls its metrics."""

    f1: str
    exact: str
    valid: str
    precision: str
    recall: str
    name_match: str | None


NAMES: dict[Track, MetricNames] = {
    "structured": MetricNames(
        f1="field_f1",
        exact="exact_match_rate",
        valid="json_valid_rate",
        precision="field_precision",
        recall="field_recall",
        name_match=None,
    ),
    "toolcall": MetricNames(
        f1="args_f1",
        exact="args_exact_rate",
        valid="valid_call_rate",
        precision="args_precision",
        recall="args_recall",
        name_match="name_match_rate",
    ),
}


class Case(NamedTuple):
    """All that is known about one track."""

    evaluation: Evaluation
    track: Track
    spec: DecisionSpec
    domains: tuple[DomainScore, ...]

    @property
    def candidate(self) -> ArmResult | None:
        """The candidate's scores, or None when it did not run."""
        return self.evaluation.arm(self.track, self.spec.candidate)

    def difference(self, arm: ArmName | None = None) -> Metric | None:
        """Return ``arm`` (the candidate) minus teacher on the headline F1, paired."""
        found = self.evaluation.difference(
            self.track, NAMES[self.track].f1, arm or self.spec.candidate, "teacher"
        )
        return found.difference if found else None

    def failed_requests(self, arm: ArmName) -> tuple[int, int]:
        """Return on how many of its rows the server of ``arm`` failed; 0 of 0 if it did not run."""
        found = self.evaluation.arm(self.track, arm)
        if found is None:
            return 0, 0
        return found.errors, max((metric.n for metric in found.metrics.values()), default=0)

    def split_domains(self) -> tuple[list[DomainScore], list[DomainScore]]:
        """Return the domains with enough rows to be judged, and the thin ones."""
        least = self.spec.min_domain_rows
        judged = [domain for domain in self.domains if domain.f1.n >= least]
        return judged, [domain for domain in self.domains if domain.f1.n < least]
