"""A merged model's record, the order to the worker that makes it, and how far it may stray."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from slm_core import __version__
from slm_core.prompting.prefix import Variant
from slm_core.records import Record, utc_now

Dtype = Literal["auto", "float32", "bfloat16", "float16"]

LEAST_EQUAL_TOKENS = 0.98
MOST_PERPLEXITY_CHANGE = 0.01
MOST_RELATIVE_DIFFERENCE = 0.02
"""Of the mean difference of scores to their spread. Measured with two adapters of the nano
student: rounding to float16 gives 0.0002, to bfloat16 0.003; the wrong one of full and 4-bit
weights under the adapter gives 0.09, with 98 to 98.5 % of the tokens the same."""


class MergeOrder(Record):
    """What the worker is to do."""

    parent_pid: int
    adapter_path: str
    model_folder: str
    model: str
    """Folder that the merged model goes to."""
    variant: Variant | None
    """Context prefix that the adapter was trained with."""
    prompt_hash: str
    dtype: Dtype
    trained_on_nf4: bool
    merge_into_nf4: bool
    precision: str
    """Of the base model in training: ``float32`` or ``bfloat16``."""
    prompts: tuple[str, ...]
    dataset_path: str | None
    max_rows: int
    device: Literal["auto", "cpu", "cuda"]
    threads: int | None


class MergeCheck(Record):
    """How far a merged model is from base and adapter, on the same inputs."""

    prompts: int
    rows: int
    positions: int
    """Compared positions; each has one score per token of the vocabulary."""
    max_difference: float
    """Of two scores (logits)."""
    mean_difference: float
    spread: float
    """Standard deviation of the scores before."""
    equal_tokens: float
    """Share of positions with the same most likely next token."""
    perplexity_before: float | None
    """On the supervised tokens of the rows; None without rows, or when it is not finite."""
    perplexity_after: float | None

    @property
    def perplexity_change(self) -> float | None:
        """Relative to the perplexity before."""
        if self.perplexity_before is None or self.perplexity_after is None:
            return None
        return self.perplexity_after / self.perplexity_before - 1

    @property
    def relative_difference(self) -> float:
        """The mean difference in units of the spread."""
        return self.mean_difference / self.spread if self.spread > 0 else self.mean_difference

    def problems(self) -> tuple[str, ...]:
        """Return what is beyond its limit, with the numbers."""
        found: list[str] = []
        # The comparisons are the other way round than one would say it: NaN fails them all.
        if not self.equal_tokens >= LEAST_EQUAL_TOKENS:
            found.append(
                f"{self.equal_tokens:.1%} of the most likely tokens are the same, at least "
                f"{LEAST_EQUAL_TOKENS:.0%} should be"
            )
        if not self.relative_difference <= MOST_RELATIVE_DIFFERENCE:
            found.append(
                f"scores differ by {self.relative_difference:.1%} of their spread on average, at "
                f"most {MOST_RELATIVE_DIFFERENCE:.0%} is fine"
            )
        change = self.perplexity_change
        if self.rows and (change is None or not abs(change) <= MOST_PERPLEXITY_CHANGE):
            said = "is no number" if change is None else f"changes by {change:+.1%}"
            found.append(
                f"the perplexity on {self.rows} rows {said}, at most "
                f"{MOST_PERPLEXITY_CHANGE:.0%} is fine"
            )
        return tuple(found)


class MergedModel(Record):
    """A merged model and what it was made of."""

    path: str
    adapter_id: str
    base_model: str
    base_sha256: str
    dtype: str
    merged_into_nf4: bool
    """Whether the weights under the adapter are the 4-bit ones it was trained on, unpacked."""
    cep_id: str | None
    prompt_hash: str
    check: MergeCheck
    forced: bool = False
    """Published although the check found problems."""
    files: dict[str, str] = Field(default_factory=dict)
    """Weights file to SHA-256."""
    code_version: str = __version__
    created_at: datetime = Field(default_factory=utc_now)
