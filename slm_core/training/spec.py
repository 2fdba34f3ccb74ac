"""What a training may be told."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

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
    """Rows in one forward pass. Packed, a pass holds micro_batch x max_length tokens instead."""
    accumulation: int = Field(default=4, ge=1)
    """Forward passes in one optimizer step."""
    packing: bool = True
    """Lay rows end to end, without padding; attention never crosses from one to the next."""
    batching: Literal["rows", "tokens"] = "rows"
    """What makes up an optimizer step: rows (micro_batch x accumulation of them), or tokens (as
    many rows as fit into `accumulation` packed passes), which is faster and less even."""
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
    quantization: Literal["none", "nf4"] = "none"
    """How the frozen base model is kept: as it is, or in 4 bits (QLoRA)."""
    gradient_checkpointing: Literal["auto", "on", "off"] = "auto"
    """Recompute activations to save memory: auto does only when a trial pass shows the need."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the decoder layers; auto does on a GPU when the run is long enough to gain."""
    world_size: int = Field(default=1, ge=1)
    """Worker processes, one per GPU, that share each step. A step reads the same rows with any
    number of them."""
    shard: bool = False
    """Spread the decoder's weights over the workers (FSDP), to leave room for longer passes.
    Each worker loads the model whole first, so it must fit into one GPU by itself."""
    gpu_memory_fraction: float | None = Field(default=None, gt=0, le=1)
    """Share of each GPU's memory that this training may use; None takes what it needs."""
    on_oom: Literal["ladder", "recipe", "stop"] = "ladder"
    """When memory runs out: keep what is learned unchanged as long as possible, follow the
    field's recipe (half the step, shorter rows, half the GPUs), or stop."""
    shorter_lengths: tuple[int, ...] = (1536, 1024)
    """Lengths that the ladder may cut prompts to; empty never cuts. What is cut is counted."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after this many validations without a better loss; None trains all epochs."""
    min_improvement: float = Field(default=0.0, ge=0)
    """Fall of the validation loss, in nats, that counts as better."""
    restore_best: bool = True
    """Publish the weights of the best validation loss, not the last; needs validation rows."""

    @model_validator(mode="after")
    def _fits_together(self) -> TrainingSpec:
        if self.batching == "tokens" and not self.packing:
            raise ValueError("batching='tokens' needs packing=True")
        if self.shard and self.world_size == 1:
            raise ValueError("shard=True needs world_size of at least 2")
        if self.shard and self.quantization != "none":
            raise ValueError("shard=True cannot spread a quantized model; use quantization='none'")
        return self

    @field_validator("tracks", "lora_target")
    @classmethod
    def _not_empty_no_repeats(cls, names: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not names:
            raise ValueError("at least one is needed")
        if isinstance(names, tuple) and len(set(names)) != len(names):
            raise ValueError("names repeat")
        return names

    @property
    def pass_tokens(self) -> int:
        """Tokens that one packed forward pass holds at most."""
        return self.micro_batch * self.max_length

    def digest(self) -> str:
        """Return the content id of all fields; a resumed run must have the same."""
        return content_id("training", self)
