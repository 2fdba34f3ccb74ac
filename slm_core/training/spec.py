"""What a training may be told."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from slm_core.prompting.prefix import Variant
from slm_core.records import TRACKS, Track, content_id


class TrainingSpec(BaseModel):
    """How to fine-tune one adapter. One optimizer step reads micro_batch x accumulation rows."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    base_model: str
    """Folder of the student's weights, or a Hugging Face hub id."""
    tracks: tuple[Track, ...] = TRACKS
    """Rows of other tracks are left out and counted."""
    cep: Variant | None = "universal"
    """Context engineering prefix that the adapter is trained with, and will be served with."""
    lora_r: int = Field(default=16, ge=1)
    """Rank of the update matrices."""
    lora_alpha: int = Field(default=32, ge=1)
    """The update is scaled by lora_alpha / lora_r."""
    lora_dropout: float = Field(default=0.05, ge=0, lt=1)
    """Share of a LoRA layer's inputs that is zeroed in training."""
    lora_target: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names of the linear layers to adapt; all-linear leaves out the output layer."""
    learning_rate: float = Field(default=2e-4, gt=0)
    """Peak of the schedule."""
    epochs: int = Field(default=3, ge=1)
    """Times that every row is read."""
    micro_batch: int = Field(default=4, ge=1)
    """Rows in one forward pass."""
    accumulation: int = Field(default=4, ge=1)
    """Forward passes in one optimizer step."""
    max_length: int = Field(default=2048, ge=2)
    """Longest row in tokens, prompt and answer together. Rows are never cut."""
    too_long: Literal["refuse", "drop"] = "refuse"
    """What longer rows do: stop the run before it begins, or stay out and be counted."""
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps over which the learning rate rises from zero."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warm-up."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients of a larger norm are scaled down to it."""
    seed: int = Field(default=42, ge=0)
    """Fixes initial weights, row order and dropout."""
    log_every_steps: int = Field(default=1, ge=1)
    """Steps between two logged losses."""
    eval_every_steps: int | None = Field(default=None, ge=1)
    """Steps between two validation losses; None measures once an epoch."""
    save_every_steps: int = Field(default=50, ge=1)
    """Steps between two checkpoints: what a killed run loses at most."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Older ones are removed. With 1, a damaged checkpoint cannot fall back to another."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads; None takes one per core. Sums differ in the last bit with their number."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU when there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the base model and the matrix products; auto is bf16 on a GPU, fp32 on a CPU."""

    @field_validator("tracks", "lora_target")
    @classmethod
    def _not_empty_no_repeats(cls, names: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not names:
            raise ValueError("at least one is needed")
        if isinstance(names, tuple) and len(set(names)) != len(names):
            raise ValueError("names repeat")
        return names

    def digest(self) -> str:
        """Return the content id of all fields; a resumed run must have the same."""
        return content_id("training", self)
