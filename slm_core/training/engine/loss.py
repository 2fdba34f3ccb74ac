"""Cross-entropy through the output layer without ever holding all scores. Imports torch.

The output layer is frozen, so the only gradient is that of the hidden states. It is computed
chunk by chunk in the forward pass, where the scores are at hand, and kept instead of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_CHUNK_BYTES = 2**30
_MIN_CHUNK, _MAX_CHUNK = 64, 8192


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
    ) -> Tensor:
        gradient = torch.empty_like(hidden)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start, stop in _chunks(len(targets), len(weight)):
            scores = torch.nn.functional.linear(hidden[start:stop], weight, bias)
            loss, slope = _loss_and_slope(scores, targets[start:stop])
            total += loss
            torch.mm(slope, weight, out=gradient[start:stop])
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outputs[0].to(gradient.dtype), None, None, None


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
) -> Tensor:
    """Return the summed cross-entropy, a float32 scalar in nats.

    Differentiate the sum and scale what comes out: a factor on the sum would be rounded to the
    precision of ``hidden``.

    Args:
        hidden: (tokens, width), whatever goes into the output layer.
        weight: (vocabulary, width), frozen.
        bias: (vocabulary,), frozen, or None.
        targets: (tokens,) the right next tokens.
    """
    if torch.is_grad_enabled():
        return _LinearCrossEntropy.apply(hidden, weight, bias, targets)  # type: ignore[no-any-return]
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    for start, stop in _chunks(len(targets), len(weight)):
        scores = torch.nn.functional.linear(hidden[start:stop], weight, bias)
        total += _loss(scores.float(), targets[start:stop]).sum()
    return total


def _chunks(tokens: int, vocabulary: int) -> list[tuple[int, int]]:
    size = min(_MAX_CHUNK, max(_MIN_CHUNK, _CHUNK_BYTES // (4 * vocabulary)))
    return [(start, min(start + size, tokens)) for start in range(0, tokens, size)]


def _loss(scores: Tensor, targets: Tensor) -> Tensor:
    return scores.logsumexp(-1) - scores.gather(1, targets[:, None])[:, 0]


def _loss_and_slope_of(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed loss, and its gradient by the scores in their precision."""
    exact = scores.float()
    log_sum = exact.logsumexp(-1, keepdim=True)
    right = torch.arange(exact.shape[1], device=exact.device) == targets[:, None]
    loss = (log_sum[:, 0] - exact.gather(1, targets[:, None])[:, 0]).sum()
    return loss, ((exact - log_sum).exp() - right.float()).to(scores.dtype)


def _loss_and_slope_in_place(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    exact = scores.float()
    log_sum = exact.logsumexp(-1, keepdim=True)
    picked = exact.gather(1, targets[:, None])
    loss = (log_sum - picked).sum()
    slope = exact.sub_(log_sum).exp_()
    slope.scatter_add_(1, targets[:, None], -torch.ones_like(picked))
    return loss, slope.to(scores.dtype)


_compiled: list[Any] = []


def _loss_and_slope(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    if _compiled and scores.is_cuda:
        return _compiled[0](scores, targets)
    return _loss_and_slope_in_place(scores, targets)


def compile_loss() -> None:
    """From now on fuse the softmax and its gradient into one pass over the scores."""
    if not _compiled:
        _compiled.append(torch.compile(_loss_and_slope_of, dynamic=True))
