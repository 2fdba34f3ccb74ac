"""The thresholds of the gates, each with its source."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from slm_core.records import Track

Candidate = Literal["adapter", "student", "student_cep"]

Share = float
"""0 to 1."""


class DecisionSpec(BaseModel):
    """What a candidate must show before it may replace the teacher.

    Every gate reads the strict scores and judges the whole 95 % interval, so luck in a small
    test set decides nothing. A threshold of None leaves its gate out. Where no source is
    named, a threshold is one of the project's acceptance gates (README, Gates).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    candidate: Candidate = "adapter"
    """The arm that would replace the teacher; ``student`` asks whether it can as it is."""
    tracks: tuple[Track, ...] | None = None
    """Tracks that must be shown; None stands for those in the evaluation."""
    min_rows: int = Field(default=100, ge=1)
    """Under this many rows a gate is inconclusive, whatever the score. At 100 rows the 95 %
    interval of an argument F1 near .9 is about .045 wide on each side (measured on public
    tool-call outputs)."""

    max_deficit: Share = Field(default=0.02, ge=0, le=1)
    """Non-inferiority margin of the headline F1 against the teacher, paired: the lower end of
    the interval of candidate minus teacher must be at least -0.02."""
    exact: Share | None = Field(default=0.70, ge=0, le=1)
    """Single-turn answers that are right as a whole."""
    f1: Share | None = Field(default=0.80, ge=0, le=1)
    """Headline F1, micro: ``field_f1`` or ``args_f1``."""
    valid: Share | None = Field(default=0.90, ge=0, le=1)
    """Answers in the track's exact format."""
    precision: Share | None = Field(default=0.85, ge=0, le=1)
    """Of the values answered, the right ones."""
    recall: Share | None = Field(default=0.85, ge=0, le=1)
    """Of the values wanted, the right ones."""
    name_match: Share | None = Field(default=0.80, ge=0, le=1)
    """Right tool, ``toolcall`` only."""
    max_errors: Share = Field(default=0.01, ge=0, le=1)
    """Share of rows on which the server failed. Beyond it the scores tell about the server, not
    about the model: a candidate fails, and a teacher is no measure."""

    baseline_gap: Share = Field(default=0.0, ge=0, le=1)
    """How far the bare student must be below the teacher before fine-tuning is advised. The
    published guide's own rule is .10."""
    reference_f1: dict[Track, Share] = Field(
        default_factory=lambda: {"structured": 0.602, "toolcall": 0.744}
    )
    """Headline F1 of the first adapters trained with a context prefix; .322 and 0 before it."""
    scale_up: Share = Field(default=0.90, ge=0, le=1)
    """Part of the teacher's headline F1 from which a larger training run is worth its price."""

    domain_spread: Share = Field(default=0.15, ge=0, le=1)
    """Sample standard deviation of F1 over domains must be below this."""
    domain_floor: Share = Field(default=0.50, ge=0, le=1)
    """No domain may be below this F1."""
    min_domain_rows: int = Field(default=20, ge=2)
    """Under this many rows a domain cannot be judged: with 5 rows in each of 5 equal domains
    the spread passes .15 by chance in 11 % of cases, with 20 rows in none (measured)."""
    require_domains: bool = False
    """Whether unknown or too small domains keep the outcome from SUCCESS. A domain that is
    shown to be weak always does."""


MULTI_TURN = DecisionSpec(exact=None, f1=0.60, name_match=0.80)
"""For test sets of conversations with several turns: F1 .60 with the right tool in .80."""
