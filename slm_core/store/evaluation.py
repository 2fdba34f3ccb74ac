"""Evaluations, and their metrics in a narrow table that can be asked across evaluations."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa

from slm_core.records import ArmName, Evaluation, Metric, Track, View
from slm_core.store import schema
from slm_core.store.table import RecordTable

_metrics = schema.evaluation_metrics
_evaluations = schema.evaluations


class MetricPoint(NamedTuple):
    """One metric of one evaluation."""

    evaluation_id: str
    adapter_id: str | None
    created_at: datetime
    metric: Metric


class Evaluations(RecordTable[Evaluation]):
    """Every evaluation that was carried out.

    The id is that of the outputs, so a model that answers as before makes the same evaluation
    again: times, prices and the files of the answers are then those of the latest.
    """

    table = _evaluations
    record_type = Evaluation
    description = frozenset({"created_at", "arms", "details_path", "details_sha256"})
    follows = frozenset({"arms", "details_path", "details_sha256"})

    def metric_history(
        self, track: Track, arm: ArmName, metric: str, view: View = "strict"
    ) -> list[MetricPoint]:
        """Return ``metric`` of ``arm`` in each evaluation that has it, oldest first."""
        statement = (
            sa.select(
                *_evaluations.c["id", "adapter_id", "created_at"],
                *_metrics.c["value", "n", "low", "high"],
            )
            .join_from(_metrics, _evaluations)
            .where(
                _metrics.c.track == track,
                _metrics.c.arm == arm,
                _metrics.c.metric == metric,
                _metrics.c.view == view,
            )
            .order_by(_evaluations.c.created_at, _evaluations.c.id)
        )
        with self._database.read() as connection:
            return [
                MetricPoint(
                    row.id,
                    row.adapter_id,
                    row.created_at,
                    Metric(value=row.value, n=row.n, low=row.low, high=row.high),
                )
                for row in connection.execute(statement)
            ]

    def _replace(self, connection: sa.Connection, record: Evaluation) -> None:
        super()._replace(connection, record)
        connection.execute(sa.delete(_metrics).where(_metrics.c.evaluation_id == record.id))
        self._save_parts(connection, record)

    def _save_parts(self, connection: sa.Connection, record: Evaluation) -> None:
        rows = metric_rows(record)
        if rows:
            connection.execute(sa.insert(_metrics), rows)


def metric_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return the rows of the narrow table that ``evaluation`` stands for."""
    return [
        {
            "evaluation_id": evaluation.id,
            "track": result.track,
            "arm": result.arm,
            "view": view,
            "metric": name,
            **metric.model_dump(),
        }
        for result in evaluation.arms
        for view, metrics in (("strict", result.metrics), ("lenient", result.lenient))
        for name, metric in metrics.items()
    ]
