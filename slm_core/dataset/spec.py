"""What may be configured when calls become a dataset."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from slm_core.prompting.prefix import Variant
from slm_core.records import TRACKS, Split, Track

NearDuplicates = Literal["together", "ignore"]


class DatasetSpec(BaseModel):
    """Which calls are kept, and how they are split."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    tracks: tuple[Track, ...] = Field(default=TRACKS, min_length=1)
    """Calls of other tracks are dropped."""
    min_examples: int = Field(default=100, ge=3)
    """Fewer usable, different examples than this stop the build."""
    val_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of the rows that only watch training."""
    test_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of the rows that are frozen for evaluation, those that earlier datasets froze among
    them. What is left, trains."""
    min_split_rows: int = Field(default=5, ge=1)
    """Rows that each track should have in ``val`` and in ``test``, as far as ``train`` stays
    the largest of the three."""
    rows: dict[Split, int] | None = None
    """Exact rows of each split, for example 100/50/50, in place of the fractions. Rows beyond
    them are dropped and counted."""
    seed: int = 42
    """Of the split. The same rows and seed give the same split, in whatever order they come."""
    near_duplicates: NearDuplicates = "together"
    """``together``: questions whose turns agree up to case, spacing and closing punctuation
    count as one question: they share a split, and may not repeat a frozen test row.
    ``ignore``: only equal prompts do; for workloads where every user turn is the same."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Longest example, prompt and answer together, in tokens of the base model that is trained.
    Longer ones are left out and counted, before the split. None leaves that to the training."""
    export_prefix: Variant | None = None
    """Context prefix written into ``prompt_completion/``, which other trainers read. The rows
    themselves never hold one: the renderer adds it."""

    @model_validator(mode="after")
    def _splits_fit(self) -> Self:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"val_fraction {self.val_fraction} + test_fraction {self.test_fraction} leave "
                "nothing to train on; keep their sum below 1"
            )
        if self.rows is not None and (
            set(self.rows) != {"train", "val", "test"} or min(self.rows.values()) < 1
        ):
            raise ValueError(f"rows must name train, val and test, each at least 1: {self.rows}")
        return self

    @property
    def fractions(self) -> dict[Split, float]:
        """Share of the rows of each split; they add up to 1."""
        if self.rows is not None:
            total = sum(self.rows.values())
            return {split: count / total for split, count in self.rows.items()}
        train = 1 - self.val_fraction - self.test_fraction
        return {"train": train, "val": self.val_fraction, "test": self.test_fraction}
