"""How well a training uses its hardware, and what that costs: arithmetic only.

FLOPs are those of the model, not of the machine: what is recomputed to save memory does not
count, padding neither. With N weights in matrix products a full fine-tuning takes 6N per token:
2N forward, 2N for the gradient of the inputs, 2N for that of the weights. LoRA leaves the last
out for the frozen weights F, and has all three for its own L: 4F + 6L. That is the usual
6N x (2 + L/F) / 3 with N = F + L, but for 2L^2/F. ("6N" for LoRA reports 1.5 times too much.)
Attention has no weights to freeze, so both gradients count: see ``attention_flops``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

_PEAKS: tuple[tuple[str, float], ...] = (
    # Dense bf16 with fp32 sums, in FLOP/s; data sheets print twice as much "with sparsity".
    (r"B200", 2250e12),  # HGX B200 data sheet: 4.5 PFLOPS sparse per GPU
    (r"GH200 .*", 989e12),  # GH200 data sheet: 1,979 sparse
    (r"H200 NVL", 835e12),  # H200 data sheet: 1,671 sparse
    (r"H200", 989e12),  # H200 data sheet: 1,979 sparse
    (r"H100 NVL", 835e12),  # H100 data sheet: 1,671 sparse
    (r"H100 PCIe", 756e12),  # H100 PCIe product brief: 1,513 sparse
    (r"H100 80GB HBM3|H100 SXM.*", 989e12),  # H100 data sheet: 1,979 sparse
    (r"A[18]00[- ](SXM4|PCIE|PCIe)?.*", 312e12),  # A100 data sheet: 312
    (r"A40", 150e12),  # A40 data sheet: 149.7
    (r"A30", 165e12),  # A30 data sheet: 165
    (r"A10", 125e12),  # A10 data sheet: 125
    (r"A10G", 70e12),  # A10G data sheet: 70
    (r"L4", 121e12),  # L4 data sheet: 242 sparse
    (r"L40", 181e12),  # L40 data sheet: 181
    (r"L40S", 362e12),  # L40S data sheet: 362
    (r"RTX A6000", 155e12),  # A6000: GA102 whitepaper, 154.8
    (r"RTX 6000 Ada Generation", 364e12),  # data sheet: 1,457 AI TOPS = fp8 sparse, a quarter
    (r"GeForce RTX 4090", 165e12),  # Ada whitepaper, appendix A: 165.2
    (r"GeForce RTX 3090", 71e12),  # GA102 whitepaper, appendix A: 71
)
_HALF = frozenset({"bf16", "bfloat16", "fp16", "float16"})


class ModelShape(NamedTuple):
    """What the FLOPs of a language model with a LoRA adapter follow from."""

    body: int
    """Frozen weights of matrix products that every token passes through: no embeddings (a
    look-up), no norms, not the output layer. In 4 bits each weight still counts as one."""
    head: int
    """Weights of the output layer."""
    lora: int
    """Weights of the adapter."""
    layers: int
    """Attention layers."""
    attention_width: int
    """Heads x head size: the width of queries, and of what the values are mixed to."""


def attention_flops(shape: ModelShape, document_tokens: Iterable[int]) -> float:
    """Return the FLOPs of causal attention in one training pass over documents.

    Scores and mixing take 2 x n^2 x width each in a layer, half of it behind the causal mask;
    the backward pass takes twice the forward pass. Packed documents do not see each other, so
    the squares are those of the documents, not of the pack.
    """
    squares = sum(n * n for n in document_tokens)
    return 6.0 * shape.layers * shape.attention_width * squares


def matrix_flops(shape: ModelShape, tokens: int, head_tokens: int) -> float:
    """Return the FLOPs of the matrix products of one training pass.

    ``head_tokens`` are those that the output layer sees: with a loss on answers only, the
    supervised ones.
    """
    per_token = 4.0 * shape.body + 6.0 * shape.lora
    return per_token * tokens + 4.0 * shape.head * head_tokens


def peak_flops(device_name: str, precision: str) -> float | None:
    """Return the most FLOP/s that a GPU of this name can do in bf16, or None if unknown.

    ``device_name`` is what ``torch.cuda.get_device_name`` says. A part of a GPU (MIG), another
    variant of a known one (Laptop, D) and float32 are unknown: a wrong peak makes a wrong MFU.
    """
    if precision.lower() not in _HALF or " MIG " in device_name:
        return None
    name = re.sub(r"^(NVIDIA|Tesla) ", "", device_name.strip())
    return next((peak for pattern, peak in _PEAKS if re.fullmatch(pattern, name)), None)


def utilisation(flops: float, gpu_seconds: float, peak: float | None) -> float | None:
    """Return the MFU, the share of the peak of all GPUs; None where the peak is unknown.

    Args:
        flops: what the model took.
        gpu_seconds: time of each GPU, summed over them.
        peak: FLOP/s of one GPU.
    """
    if peak is None or gpu_seconds <= 0:
        return None
    return flops / (gpu_seconds * peak)


def cost_usd(seconds: float, usd_per_hour: float | None) -> float | None:
    """Return what ``seconds`` of a machine cost; None without a price."""
    return None if usd_per_hour is None else seconds / 3600 * usd_per_hour
