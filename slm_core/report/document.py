"""The content of ``report.json``: every number of the report, and the one source of its pages.

Keys are a contract with scripts. A number that does not exist is null or absent, never 0.
``Document.model_json_schema()`` is the file's JSON Schema.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from slm_core.records import (
    ArmName,
    Attempt,
    CallStats,
    GateResult,
    Metric,
    Outcome,
    Record,
    Split,
    Track,
)
from slm_core.report.inputs import LiveAnswer

FORMAT = "slm-report/1"
Scores = dict[str, Metric]


class Difference(Record):
    """How two arms differ on one metric."""

    difference: Metric
    """First minus second, paired; positive when the first scored higher."""
    mcnemar_p: float | None
    a_only: int
    """Rows that only the first got right; counted for rates."""
    b_only: int
    """Rows that only the second got right."""


class Latency(Record):
    """Seconds from question to answer."""

    p50_seconds: float
    p95_seconds: float


class TrackReport(Record):
    """One track. An arm that did not run is null."""

    arms: dict[ArmName, Scores | None]
    """Arm to metric, strict view: the headline."""
    arms_lenient: dict[ArmName, Scores | None]
    """The same with one Markdown fence stripped and Python literals read."""
    paired: dict[str, dict[str, Difference]]
    """``adapter_vs_teacher`` and the like, to metric."""
    models: dict[ArmName, str | None]
    failures: dict[ArmName, dict[str, int] | None]
    """Failure class to rows, strict view; right rows are not in it."""
    errors: dict[ArmName, int | None]
    latency: dict[ArmName, Latency | None]
    cost_per_1000_usd: dict[ArmName, float | None]
    """Dollars for 1,000 calls; null when the price is unknown."""


class LossSample(Record):
    """One logged step."""

    step: int
    loss: float | None
    """Nats per supervised token; null when it was not finite."""
    val_loss: float | None


class Lineage(Record):
    """The ids of everything that went into the numbers."""

    run_id: str | None
    trace_id: str | None
    claim_id: str | None
    claim_size: int | None
    dataset_id: str | None
    dataset_spec: str | None
    test_set_id: str
    training_run_id: str | None
    training_spec: str | None
    adapter_id: str | None
    adapter_sha256: str | None
    base_model: str | None
    base_sha256: str | None
    cep_id: str | None
    prompt_hash: str | None
    code_version: str | None
    evaluation_id: str
    evaluation_spec: str
    details_sha256: str
    decision_id: str


class Document(Record):
    """Everything that the report says, without any prompt text but ``live_answer``."""

    format: Literal["slm-report/1"] = FORMAT
    title: str
    created_at: datetime
    """Of the decision: the same records give the same bytes."""
    outcome: Outcome
    next_actions: tuple[str, ...]
    gates: tuple[GateResult, ...]
    calls_captured: int | None
    examples: int | None
    rows: dict[Split, int] | None
    drops: dict[str, int] | None
    capture: tuple[CallStats, ...]
    dataset_id: str | None
    adapter_id: str | None
    evaluation_id: str
    tracks: dict[Track, TrackReport]
    losses: tuple[LossSample, ...]
    attempts: tuple[Attempt, ...]
    training: dict[str, Any] | None
    """The adapter's summary: steps, tokens, speed."""
    timings: dict[str, float]
    seed: int
    live_answer: LiveAnswer | None
    lineage: Lineage

    @property
    def challenger(self) -> ArmName:
        """The arm that would replace the teacher: the best prepared that ran."""
        ran = {arm for track in self.tracks.values() for arm, s in track.arms.items() if s}
        order: tuple[ArmName, ...] = ("adapter", "student_cep", "student")
        for arm in order:
            if arm in ran:
                return arm
        return "adapter"
