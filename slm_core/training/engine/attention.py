"""Attention over rows that lie end to end and must not see each other. Imports torch.

Registered with transformers under one name. A pass hands the rows' borders down as keyword
arguments; transformers builds no mask for a name that it does not know. On a GPU the kernel
is torch's own variable-length attention, or flex_attention where torch lacks that; on a CPU
each row meets the ordinary causal kernel by itself. Without borders every line of the batch
is one row, which is what padded batches and generation need.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn = None

NAME = "slm_packed"


class Borders(NamedTuple):
    """Where rows begin and end in a pass."""

    bounds: Tensor
    """(rows + 1,) int32: the first token of each row, and the end of the last."""
    longest: int
    """At least the longest row. A row longer than this would silently give NaN."""


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    segment_bounds: Tensor | None = None,
    segment_longest: int = 0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each row.

    Args:
        module: the attention layer; not used.
        query: (lines, heads, tokens, width).
        key: (lines, key heads, tokens, width); heads is a multiple of key heads.
        value: like ``key``.
        attention_mask: not used.
        scaling: factor of the scores; by default 1 / sqrt(width).
        segment_bounds: see ``Borders``; with it there is one line.
        segment_longest: see ``Borders``.

    Returns:
        (lines, tokens, heads, width), and None in place of the weights.
    """
    if segment_bounds is None:
        return _causal(query, key, value, scaling).transpose(1, 2), None
    if query.device.type == "cpu":
        return _row_by_row(query, key, value, scaling, segment_bounds).transpose(1, 2), None
    if varlen_attn is None:
        return _flex(query, key, value, scaling, segment_bounds).transpose(1, 2), None
    q, k, v = (t.transpose(1, 2)[0] for t in (query, key, value))
    out = _varlen(q, k, v, segment_bounds, segment_longest, scaling)
    return out[None], None


def _causal(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    return scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scaling, enable_gqa=True
    )


def _row_by_row(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, bounds: Tensor
) -> Tensor:
    borders = bounds.tolist()
    rows = [
        _causal(query[:, :, a:b], key[:, :, a:b], value[:, :, a:b], scaling)
        for a, b in itertools.pairwise(borders)
    ]
    return torch.cat(rows, dim=2)


def _varlen_options() -> dict[str, Any]:
    """Return how this torch is told to be causal: its keyword was renamed in 2.11."""
    if varlen_attn is None:
        return {}
    known = inspect.signature(varlen_attn).parameters
    options: dict[str, Any] = (
        {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    )
    if "enable_gqa" in known:
        options["enable_gqa"] = True
    return options


_OPTIONS = _varlen_options()


def _varlen(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, longest: int, scaling: float | None
) -> Tensor:
    assert varlen_attn is not None
    # The kernel's own factor is 1 / sqrt(width), and in torch 2.11 it takes no other.
    if scaling is not None and abs(scaling * q.shape[-1] ** 0.5 - 1) > 1e-6:
        q = q * (scaling * q.shape[-1] ** 0.5)
    out: Any = varlen_attn(q, k, v, bounds, bounds, longest, longest, **_OPTIONS)
    return out


def _flex(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, bounds: Tensor
) -> Tensor:
    from torch.nn.attention.flex_attention import create_block_mask

    tokens = query.shape[2]
    places = torch.arange(tokens, device=query.device, dtype=bounds.dtype)
    row = torch.searchsorted(bounds, places, right=True)

    def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (row[q] == row[k])

    mask = create_block_mask(sees, None, None, tokens, tokens, device=query.device)
    out: Any = _flex_kernel(query.device.type)(
        query, key, value, block_mask=mask, scale=scaling, enable_gqa=True
    )
    return out


_compiled: dict[str, Callable[..., Any]] = {}


def _flex_kernel(device: str) -> Callable[..., Any]:
    """Return flex_attention, compiled on a GPU: uncompiled it builds the whole matrix."""
    from torch.nn.attention.flex_attention import flex_attention

    if device == "cpu":
        return flex_attention
    if device not in _compiled:
        _compiled[device] = torch.compile(flex_attention, dynamic=True)
    return _compiled[device]


AttentionInterface.register(NAME, attend)
