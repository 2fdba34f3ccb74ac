from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from slm_core.training.engine import attention
from slm_core.training.engine.attention import attend

BOUNDS = (0, 1, 18, 40, 64)


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    query = torch.randn(1, 4, BOUNDS[-1], 16, requires_grad=True)
    key, value = (torch.randn(1, 2, BOUNDS[-1], 16, requires_grad=True) for _ in range(2))
    return query, key, value


def reference(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax over an explicit block-diagonal causal mask."""
    key, value = (t.repeat_interleave(2, dim=1) for t in (key, value))
    allowed = torch.zeros(BOUNDS[-1], BOUNDS[-1], dtype=torch.bool)
    for a, b in itertools.pairwise(BOUNDS):
        allowed[a:b, a:b] = True
    scores = query @ key.transpose(2, 3) / 4
    weights = scores.masked_fill(~allowed.tril(), float("-inf")).softmax(-1)
    return (weights @ value).transpose(1, 2)


# Uncompiled it is slow; here it only has to be right.
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kernel", ["rows", "flex"])
def test_rows_attend_to_themselves_alone(kernel: str) -> None:
    bounds = torch.tensor(BOUNDS, dtype=torch.int32)
    query, key, value = inputs()
    if kernel == "rows":
        out, _ = attend(None, query, key, value, None, segment_bounds=bounds, segment_longest=24)
    else:  # where torch has no variable-length kernel; it has a CPU form to compare with
        with torch.no_grad():
            frozen = [t.detach() for t in (query, key, value)]
            out = attention._flex(*frozen, None, bounds).transpose(1, 2)
    expected = reference(query, key, value)
    assert torch.allclose(out, expected, atol=1e-5)
    if kernel == "rows":
        slope = torch.randn_like(expected)
        ours = torch.autograd.grad(out, (query, key, value), slope)
        theirs = torch.autograd.grad(expected, (query, key, value), slope)
        for mine, right in zip(ours, theirs, strict=True):
            assert torch.allclose(mine, right, atol=1e-4)


def test_without_borders_every_line_is_one_row() -> None:
    query, key, value = inputs()
    out, _ = attend(None, query, key, value, None)
    alone, _ = attend(None, query[:, :, :9], key[:, :, :9], value[:, :, :9], None)
    assert torch.allclose(out[:, :9], alone, atol=1e-6)
