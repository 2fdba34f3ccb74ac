"""A linear layer with its LoRA update, as training runs it. Imports torch.

PEFT keeps the parameters, so that what is saved is PEFT's; only the forward pass is ours.
PEFT copies the input to float32 in every layer and draws a mask for each; here the update is
computed in the precision of the base model from float32 parameters, and dropout is the hash
of ``dropout.py``. Layers that read the same tensor share its mask.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn.functional import linear

from slm_core.training.engine.dropout import TokenKeys, dropped, feature_keys

_ADAPTER = "default"
_SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class _Siblings:
    """LoRA layers that read one tensor: the first computes the inner products of all.

    One wide product instead of several narrow ones reads the input once.
    """

    def __init__(self, layers: list[Any], rate: float, keys: TokenKeys) -> None:
        self.layers = layers
        self.rate = rate
        self.keys = keys
        self.ready: list[Tensor] = []

    def inner(self, number: int, x: Tensor) -> Tensor:
        """Return ``x`` after dropout times the A matrix of layer ``number``, and its scale."""
        if number == 0:
            down = [layer.lora_A[_ADAPTER].weight * _scale(layer) for layer in self.layers]
            first = self.layers[0]
            if first.training and self.rate > 0:
                assert self.keys.tensor is not None
                x = dropped(x, self.keys.tensor, first.slm_features, self.rate)
            products = linear(x, torch.cat(down).to(x.dtype))
            self.ready = list(products.split([len(a) for a in down], dim=-1))
        mine = self.ready[number]
        if number == len(self.layers) - 1:
            self.ready = []
        return mine


def forget_inner(model: nn.Module) -> None:
    """Let go of what a pass left behind that failed between two layers of one input."""
    for module in model.modules():
        siblings = getattr(module, "slm_siblings", None)
        if isinstance(siblings, _Siblings):
            siblings.ready = []


def take_over(model: nn.Module, rate: float, keys: TokenKeys) -> None:
    """Let every LoRA layer of ``model`` run the forward pass below."""
    found = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLinear) or _is_quantized_lora(layer)
    }
    for path in sorted({name.rpartition(".")[0] for name in found}):
        own = {n.rpartition(".")[2]: m for n, m in found.items() if n.rpartition(".")[0] == path}
        groups = [g for g in _SAME_INPUT if all(n in own for n in g)]
        alone = [(n,) for n in own if not any(n in g for g in groups)]
        for group in [*groups, *alone]:
            siblings = _Siblings([own[n] for n in group], rate, keys)
            first: Any = siblings.layers[0]
            features = feature_keys(f"{path}.{group[0]}", first.in_features)
            device = first.lora_A[_ADAPTER].weight.device
            first.register_buffer("slm_features", features.to(device), persistent=False)
            for number, layer in enumerate(siblings.layers):
                _flatten_statistics(layer.base_layer)
                layer.slm_siblings = siblings
                layer.slm_number = number
                layer.forward = types.MethodType(_forward, layer)


def _is_quantized_lora(layer: nn.Module) -> bool:
    return type(layer).__name__ == "Linear4bit" and hasattr(layer, "lora_A")


def _scale(layer: Any) -> float:
    return layer.scaling[_ADAPTER]


def _forward(self: Any, x: Tensor, *_: Any, **__: Any) -> Tensor:
    inner = self.slm_siblings.inner(self.slm_number, x)
    return _base(self.base_layer, x) + linear(inner, self.lora_B[_ADAPTER].weight.to(x.dtype))


def _flatten_statistics(layer: Any) -> None:
    """Unpack the block maxima of a doubly quantized layer, once: 0.4 bits a weight more."""
    state = getattr(layer.weight, "quant_state", None)
    if state is not None and state.nested:
        from bitsandbytes.functional import dequantize_blockwise

        state.absmax = dequantize_blockwise(state.absmax, state.state2) + state.offset
        state.nested = False


def _base(layer: Any, x: Tensor) -> Tensor:
    state = getattr(layer.weight, "quant_state", None)
    if state is None:
        return layer(x)
    out = _Nf4Product.apply(
        x, layer.weight, state.absmax, state.blocksize, tuple(state.shape), x.dtype
    )
    return out if layer.bias is None else out + layer.bias.to(x.dtype)


class _Nf4Product(torch.autograd.Function):
    """x @ W' with W in 4 bits, unpacked once for each product and never kept."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        packed: Tensor,
        absmax: Tensor,
        blocksize: int,
        shape: tuple[int, ...],
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.save_for_backward(packed, absmax)
        ctx.layout = (blocksize, shape, dtype)
        return linear(x, _unpacked(packed, absmax, blocksize, shape, dtype))

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        packed, absmax = ctx.saved_tensors
        weight = _unpacked(packed, absmax, *ctx.layout)
        return slopes[0] @ weight, None, None, None, None, None


def _unpacked(
    packed: Tensor, absmax: Tensor, blocksize: int, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    return torch.ops.bitsandbytes.dequantize_4bit.default(
        packed, absmax, blocksize, "nf4", shape, dtype
    )
