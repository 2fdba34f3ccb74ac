"""What may be configured about an evaluation."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from slm_core.records import ArmName


class EvaluationSpec(BaseModel):
    """How arms are asked, and how their scores are compared. Decoding is greedy; only a hosted
    model that takes no temperature is not."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    max_tokens: int = Field(default=512, ge=1)
    """Longest answer, in tokens; a longer one is cut and counts as truncated."""
    seed: int = 42
    """Of the bootstrap. The same outputs and seed give the same intervals."""
    resamples: int = Field(default=2000, ge=100)
    """Bootstrap resamples behind each interval of precision, recall, F1 and differences."""
    comparisons: tuple[tuple[ArmName, ArmName], ...] = (
        ("adapter", "teacher"),
        ("adapter", "student"),
        ("student_cep", "student"),
        ("student", "teacher"),
    )
    """Pairs of arms, first minus second; pairs with an arm that does not run are left out."""
    give_up_after: int = Field(default=20, ge=1)
    """Failures in a row after which a backend counts as down. The evaluation then stops and
    can be resumed; fewer failures are kept as rows that count as misses. So are requests that
    a backend refuses for good (a prompt too long for it), however many."""
    batch_size: int = Field(default=16, ge=1)
    """How many cases a local model answers at once: a hint for whoever opens the backend."""
