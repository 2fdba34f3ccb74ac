"""Gather the numbers of a run's records into one document."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

from slm_core.records import (
    ARMS,
    TRACKS,
    Adapter,
    ArmName,
    ArmResult,
    Evaluation,
    FailureClass,
    Metric,
    Track,
)
from slm_core.report.document import (
    Difference,
    Document,
    Latency,
    Lineage,
    LossSample,
    Scores,
    TrackReport,
)
from slm_core.report.inputs import ReportInput

_T = TypeVar("_T")


def compose(report: ReportInput, title: str) -> Document:
    """Return the document of ``report``."""
    evaluation, decision, dataset = report.evaluation, report.decision, report.dataset
    adapter = report.adapter
    rows = dict(dataset.rows) if dataset else None
    return Document(
        title=title,
        created_at=decision.created_at,
        outcome=decision.outcome,
        next_actions=decision.next_actions,
        gates=decision.gates,
        calls_captured=report.calls_captured,
        examples=_first(report.examples, sum(rows.values()) if rows else None),
        rows=rows,
        drops=_first(report.drops, dict(dataset.drops) if dataset else None),
        capture=report.capture_stats,
        dataset_id=_first(dataset and dataset.id, adapter and adapter.dataset_id),
        adapter_id=_first(adapter and adapter.id, decision.adapter_id, evaluation.adapter_id),
        evaluation_id=evaluation.id,
        tracks={
            track: _track(evaluation, track)
            for track in TRACKS
            if any(arm.track == track for arm in evaluation.arms)
        },
        losses=_losses(adapter),
        attempts=report.training.attempts if report.training else (),
        training=adapter.summary if adapter else None,
        timings=report.timings,
        seed=evaluation.seed if report.seed is None else report.seed,
        live_answer=report.live_answer,
        lineage=_lineage(report),
    )


def _track(evaluation: Evaluation, track: Track) -> TrackReport:
    arms: dict[ArmName, ArmResult | None] = {arm: evaluation.arm(track, arm) for arm in ARMS}
    paired: dict[str, dict[str, Difference]] = {}
    for pair in evaluation.paired:
        if pair.track == track and _is_finite(pair.difference):
            paired.setdefault(f"{pair.a}_vs_{pair.b}", {})[pair.metric] = Difference(
                difference=pair.difference,
                mcnemar_p=pair.mcnemar_p,
                a_only=pair.a_only,
                b_only=pair.b_only,
            )
    return TrackReport(
        arms={name: arm and _finite(arm.metrics) for name, arm in arms.items()},
        arms_lenient={name: arm and _finite(arm.lenient) for name, arm in arms.items()},
        paired=paired,
        models={name: arm and arm.model for name, arm in arms.items()},
        failures={name: arm and _wrong(arm.failures) for name, arm in arms.items()},
        errors={name: arm and arm.errors for name, arm in arms.items()},
        latency={
            name: arm and Latency(p50_seconds=arm.seconds_p50, p95_seconds=arm.seconds_p95)
            for name, arm in arms.items()
        },
        cost_per_1000_usd={name: arm and arm.cost_per_1000_usd for name, arm in arms.items()},
    )


def _wrong(failures: Mapping[str, int]) -> dict[str, int]:
    return {kind: n for kind, n in failures.items() if kind != FailureClass.NONE and n}


def _finite(metrics: Mapping[str, Metric]) -> Scores:
    return {name: metric for name, metric in metrics.items() if _is_finite(metric)}


def _is_finite(metric: Metric) -> bool:
    return all(math.isfinite(number) for number in (metric.value, metric.low, metric.high))


def _losses(adapter: Adapter | None) -> tuple[LossSample, ...]:
    def known(loss: float | None) -> float | None:
        return loss if loss is not None and math.isfinite(loss) else None

    return tuple(
        LossSample(step=point.step, loss=known(point.loss), val_loss=known(point.val_loss))
        for point in (adapter.losses if adapter else ())
    )


def _lineage(report: ReportInput) -> Lineage:
    adapter, dataset, claim = report.adapter, report.dataset, report.claim
    training, evaluation = report.training, report.evaluation
    return Lineage(
        run_id=report.run_id,
        trace_id=report.trace_id,
        claim_id=claim and claim.id,
        claim_size=claim and claim.size,
        dataset_id=_first(dataset and dataset.id, adapter and adapter.dataset_id),
        dataset_spec=dataset and dataset.spec_digest,
        test_set_id=evaluation.test_set_id,
        training_run_id=_first(training and training.id, adapter and adapter.run_id),
        training_spec=adapter and adapter.spec_digest,
        adapter_id=_first(adapter and adapter.id, evaluation.adapter_id),
        adapter_sha256=adapter and adapter.weights_sha256,
        base_model=adapter and adapter.base_model,
        base_sha256=adapter and adapter.base_sha256,
        cep_id=adapter and adapter.cep_id,
        prompt_hash=adapter and adapter.prompt_hash,
        code_version=adapter and adapter.code_version,
        evaluation_id=evaluation.id,
        evaluation_spec=evaluation.spec_digest,
        details_sha256=evaluation.details_sha256,
        decision_id=report.decision.id,
    )


def _first(*values: _T | None) -> _T | None:
    return next((value for value in values if value is not None), None)
