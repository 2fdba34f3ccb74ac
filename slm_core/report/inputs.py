"""What a report is made from: the records of one run, whichever of them exist."""

from __future__ import annotations

from pydantic import Field, field_validator

from slm_core.records import (
    Adapter,
    CallStats,
    Claim,
    Dataset,
    Decision,
    Evaluation,
    Record,
    TrainingRun,
)


class LiveAnswer(Record):
    """One answer that the promoted student gave to a live question."""

    question: str
    answer: str
    model: str
    seconds: float
    cost_per_1000_usd: float | None = None

    @field_validator("question", "answer")
    @classmethod
    def _without_lone_surrogates(cls, text: str) -> str:
        """Models write them, files cannot hold them."""
        return text.encode("utf-8", "replace").decode("utf-8")


class ReportInput(Record):
    """The records of one run. What is None or empty is shown as missing."""

    decision: Decision
    evaluation: Evaluation
    adapter: Adapter | None = None
    dataset: Dataset | None = None
    training: TrainingRun | None = None
    """For its attempts, with the plan and the fault of each."""
    claim: Claim | None = None
    run_id: str | None = None
    trace_id: str | None = None
    """Of the run's Langfuse trace."""
    calls_captured: int | None = None
    examples: int | None = None
    """By default the rows of ``dataset``."""
    drops: dict[str, int] | None = None
    """Reason to count; by default those of ``dataset``."""
    capture_stats: tuple[CallStats, ...] = ()
    seed: int | None = None
    """By default that of ``evaluation``."""
    timings: dict[str, float] = Field(default_factory=dict)
    """Stage to seconds, in the order in which they ran."""
    questions: dict[str, str] = Field(default_factory=dict)
    """Case id to the last user turn, for the cases that the page shows."""
    live_answer: LiveAnswer | None = None
