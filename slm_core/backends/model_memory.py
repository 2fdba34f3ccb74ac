"""How much GPU memory a LoRA training of a model takes, estimated before a weight is loaded.

A rough figure for a yes or no before hours of download; the trial pass of the training
measures. The formula, per GPU:

* weights: parameters x 2 bytes in bf16, 4 in fp32. In NF4 4.127 bits for the linear layers
  (Dettmers et al. 2023, "QLoRA", with double quantization), 2 bytes for embeddings and head.
* adapter: 16 bytes for each LoRA weight: fp32 value and gradient, two fp32 moments of Adam
  (Rajbhandari et al. 2020, "ZeRO").
* activations: 34 x tokens x hidden bytes a layer; with gradient checkpointing 2 x tokens x
  hidden a layer and one layer in full (Korthikanti et al. 2022, "Reducing Activation
  Recomputation in Large Transformer Models", section 4, without the attention scores: the
  attention used here keeps none).
* 1.5 GiB for the CUDA context and the allocator's gaps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from slm_core.records import Record

GIB = 1024**3

_NF4_BYTES = 4.127 / 8
_ADAPTER_BYTES = 16
_OVERHEAD_BYTES = int(1.5 * GIB)


class MemoryNeed(NamedTuple):
    """What a training is going to do, as far as memory depends on it."""

    pass_tokens: int
    """Tokens in one forward pass."""
    least_tokens: int | None = None
    """Tokens to which a pass may be cut down; None never cuts one."""
    lora_r: int = 16
    precision: Literal["bf16", "fp32"] = "bf16"
    quantization: Literal["none", "nf4"] = "none"
    may_recompute: bool = True
    """Gradient checkpointing is on, or may be switched on."""
    may_quantize: bool = False
    """The OOM ladder may go on with a 4-bit base model."""
    shards: int = 1
    """GPUs over which the weights are spread."""
    gpu_memory_bytes: int | None = None
    """Of the smallest GPU; None estimates without judging."""


class ModelShape(NamedTuple):
    """The sizes in a ``config.json`` that memory depends on."""

    hidden: int
    layers: int
    intermediate: int
    query: int
    """Width of all query heads together."""
    key_value: int
    """Width of all key heads together."""
    embeddings: int
    """Parameters of embeddings and output layer."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ModelShape | None:
        """Return the shape of a decoder, or None when ``config`` does not say it."""
        try:
            hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
            head = int(config.get("head_dim") or hidden // heads)
            tables = 1 if config.get("tie_word_embeddings") else 2
            return cls(
                hidden=hidden,
                layers=int(config["num_hidden_layers"]),
                intermediate=int(config["intermediate_size"]),
                query=heads * head,
                key_value=int(config.get("num_key_value_heads") or heads) * head,
                embeddings=tables * int(config["vocab_size"]) * hidden,
            )
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            return None

    def lora_parameters(self, rank: int) -> int:
        """Return the weights of an adapter on all linear layers."""
        attention = 2 * (self.hidden + self.query) + 2 * (self.hidden + self.key_value)
        feed_forward = 3 * (self.hidden + self.intermediate)
        return rank * self.layers * (attention + feed_forward)


class MemoryEstimate(Record):
    """Bytes on each GPU."""

    weights: int
    adapter: int
    activations: int
    """As planned, everything kept for the backward pass."""
    least_weights: int
    """The same after every step that the plan allows to save memory."""
    least_activations: int
    loading: int = 0
    """Of a model that is spread over GPUs: each loads it whole first."""
    overhead: int = _OVERHEAD_BYTES
    complete: bool
    """False without the model's shape: only weights and overhead are counted."""

    @property
    def planned(self) -> int:
        """Bytes of the plan as it is."""
        training = self.weights + self.adapter + self.activations
        return max(training, self.loading) + self.overhead

    @property
    def least(self) -> int:
        """Bytes below which nothing helps but another plan."""
        training = self.least_weights + self.adapter + self.least_activations
        return max(training, self.loading) + self.overhead


def estimate_memory(parameters: int, shape: ModelShape | None, need: MemoryNeed) -> MemoryEstimate:
    """Return the memory that a training by ``need`` takes on each GPU."""
    kept_whole = shape.embeddings if shape else 0
    full = 4 if need.precision == "fp32" else 2
    loading = parameters * full if need.shards > 1 else 0

    def weights(quantization: str) -> int:
        if quantization == "nf4":
            return int(kept_whole * 2 + (parameters - kept_whole) * _NF4_BYTES)
        return parameters * full // need.shards

    planned = weights(need.quantization)
    least = min(planned, weights("nf4")) if need.may_quantize else planned
    if shape is None:
        return MemoryEstimate(
            weights=planned,
            adapter=0,
            activations=0,
            least_weights=least,
            least_activations=0,
            loading=loading,
            complete=False,
        )
    everything = 34 * shape.layers * need.pass_tokens * shape.hidden
    tokens = min(need.least_tokens or need.pass_tokens, need.pass_tokens)
    kept = 2 * shape.layers + 34 if need.may_recompute else 34 * shape.layers
    return MemoryEstimate(
        weights=planned,
        adapter=_ADAPTER_BYTES * shape.lora_parameters(need.lora_r),
        activations=everything,
        least_weights=least,
        least_activations=kept * tokens * shape.hidden,
        loading=loading,
        complete=True,
    )
