"""A linear layer with its LoRA update, as training runs it. Imports torch.

PEFT keeps the parameters, so that what is saved is PEFT's; only the forward pass is ours.
PEFT copies the input to float32 in every layer and draws a mask for each; here the update is
computed in the precision of the base model from float32 parameters, and dropout is the hash
of ``dropout.py``. Layers that read the same tensor share its mask.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn.functional import linear

from slm_core.training.engine.dropout import TokenKeys, dropped, feature_keys

_ADAPTER = "default"
_COLUMN_MULTIPLE = 64
"""Rows of the joined matrix begin at addresses that the matrix units like."""
_SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class _Siblings:
    """LoRA layers that read one tensor: the first computes the outputs of all."""

    def __init__(self, layers: list[Any], rate: float, keys: TokenKeys) -> None:
        self.layers = layers
        self.ready: list[Tensor] = []
        self._rate = rate
        self._keys = keys
        self._ranks = [len(layer.lora_A[_ADAPTER].weight) for layer in layers]
        self._joined = False

    def output(self, number: int, x: Tensor) -> Tensor:
        """Return the output of layer ``number`` for the input that all of them read."""
        if number == 0:
            self.ready = self._outputs(x)
        mine = self.ready[number]
        if number == len(self.layers) - 1:
            self.ready = []
        return mine

    def join(self) -> None:
        """Lay the base matrices and the B matrices into one matrix, where they can be.

        An update of its own reads and writes every output of a layer once more, which on a GPU
        takes longer than its arithmetic. As further columns of the base matrix it costs next to
        nothing. The base weights become views, so that nothing is kept twice.
        """
        bases = [layer.base_layer for layer in self.layers]
        if any(type(base) is not nn.Linear for base in bases):
            return
        rows, width = sum(len(base.weight) for base in bases), bases[0].in_features
        columns = -(-sum(self._ranks) // _COLUMN_MULTIPLE) * _COLUMN_MULTIPLE
        joined = bases[0].weight.new_zeros(rows, width + columns)
        row = 0
        for base in bases:
            part = joined[row : row + len(base.weight), :width]
            part.copy_(base.weight.detach())
            base.weight.data = part
            row += len(base.weight)
        first = self.layers[0]
        first.register_buffer("slm_joined", joined, persistent=False)
        if any(base.bias is not None for base in bases):
            bias = [joined.new_zeros(len(b.weight)) if b.bias is None else b.bias for b in bases]
            first.register_buffer("slm_bias", torch.cat(bias).detach(), persistent=False)
        else:
            first.slm_bias = None
        self._joined = True

    def updates(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield, for each B matrix, its place in the joined matrix and what belongs there."""
        if not self._joined:
            return
        joined = self.layers[0].slm_joined
        row, column = 0, self.layers[0].in_features
        for layer, rank in zip(self.layers, self._ranks, strict=True):
            up = layer.lora_B[_ADAPTER].weight
            yield joined[row : row + len(up), column : column + rank], up
            row, column = row + len(up), column + rank

    def _outputs(self, x: Tensor) -> list[Tensor]:
        down = [layer.lora_A[_ADAPTER].weight * _scale(layer) for layer in self.layers]
        ups = [layer.lora_B[_ADAPTER].weight for layer in self.layers]
        first = self.layers[0]
        if self._joined:
            empty = first.slm_joined.shape[1] - first.in_features - sum(self._ranks)
            down.append(down[0].new_zeros(empty, first.in_features))
        dry = x
        if first.training and self._rate > 0:
            assert self._keys.tensor is not None
            dry = dropped(x, self._keys.tensor, first.slm_features, self._rate)
        inner = linear(dry, torch.cat(down).to(x.dtype))
        if self._joined:
            out = _JoinedProduct.apply(x, inner, first.slm_joined, first.slm_bias, *ups)
            return list(out.split([len(up) for up in ups], dim=-1))
        return [
            _base(layer.base_layer, x) + linear(part, up.to(x.dtype))
            for layer, part, up in zip(
                self.layers, inner.split(self._ranks, dim=-1), ups, strict=True
            )
        ]


class _JoinedProduct(torch.autograd.Function):
    """[x, inner] @ [W, B]' of layers that read one x; W is frozen, B is in the joined matrix."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, inner: Tensor, joined: Tensor, bias: Tensor | None, *ups: Tensor
    ) -> Tensor:
        ctx.save_for_backward(inner, joined)
        ctx.layout = (x.shape[-1], [tuple(up.shape) for up in ups], ups[0].dtype)
        return linear(torch.cat([x, inner], dim=-1), joined, bias)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        inner, joined = ctx.saved_tensors
        width, shapes, dtype = ctx.layout
        slope = slopes[0]
        below = slope @ joined
        # Of every output with every inner feature; those of other layers are not asked for.
        pairs = slope.flatten(0, -2).t() @ inner.flatten(0, -2)
        row = column = 0
        own: list[Tensor] = []
        for rows, rank in shapes:
            own.append(pairs[row : row + rows, column : column + rank].to(dtype))
            row, column = row + rows, column + rank
        return below[..., :width], below[..., width:], None, None, *own


def forget_inner(model: nn.Module) -> None:
    """Let go of what a pass left behind that failed between two layers of one input."""
    for module in model.modules():
        siblings = getattr(module, "slm_siblings", None)
        if isinstance(siblings, _Siblings):
            siblings.ready = []


def take_over(
    model: nn.Module, decoder: nn.Module, rate: float, keys: TokenKeys, *, join: bool
) -> None:
    """Let every LoRA layer of ``model`` run the forward pass below.

    Args:
        model: the whole model.
        decoder: its part that holds all layers; B is brought up to date whenever it is called.
        rate: of the dropout.
        keys: hashes of the tokens of the present pass.
        join: lay base and B matrices into one; not for weights that move, as sharded ones do.
    """
    groups: list[_Siblings] = []
    found = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLinear) or _is_quantized_lora(layer)
    }
    for path in sorted({name.rpartition(".")[0] for name in found}):
        own = {n.rpartition(".")[2]: m for n, m in found.items() if n.rpartition(".")[0] == path}
        together = [g for g in _SAME_INPUT if all(n in own for n in g)]
        alone = [(n,) for n in own if not any(n in g for g in together)]
        for group in [*together, *alone]:
            siblings = _Siblings([own[n] for n in group], rate, keys)
            groups.append(siblings)
            first: Any = siblings.layers[0]
            features = feature_keys(f"{path}.{group[0]}", first.in_features)
            device = first.lora_A[_ADAPTER].weight.device
            first.register_buffer("slm_features", features.to(device), persistent=False)
            for number, layer in enumerate(siblings.layers):
                _flatten_statistics(layer.base_layer)
                layer.slm_siblings = siblings
                layer.slm_number = number
                layer.forward = types.MethodType(_forward, layer)
            if join:
                siblings.join()
    decoder.register_forward_pre_hook(lambda *_: _refresh(groups))


@torch.no_grad()
def _refresh(groups: Sequence[_Siblings]) -> None:
    """Bring the joined matrices up to date with what the optimizer made of B."""
    pairs = [pair for group in groups for pair in group.updates()]
    if pairs:
        places, values = zip(*pairs, strict=True)
        copy = torch._foreach_copy_  # pyright: ignore[reportPrivateImportUsage]
        copy(list(places), list(values))


def _is_quantized_lora(layer: nn.Module) -> bool:
    return type(layer).__name__ == "Linear4bit" and hasattr(layer, "lora_A")


def _scale(layer: Any) -> float:
    return layer.scaling[_ADAPTER]


def _forward(self: Any, x: Tensor, *_: Any, **__: Any) -> Tensor:
    return self.slm_siblings.output(self.slm_number, x)


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
