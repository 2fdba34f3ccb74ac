"""Dropout without a random number generator. Imports torch.

Whether a feature of a LoRA input is zeroed is a hash of (seed, step, row, position, layer,
feature). So the mask of a row does not depend on the rows beside it, on how a step is cut
into passes, on the worker that reads it, or on whether the pass is a repetition: every way
to carry out a step gives the same gradient, and there is no generator state to save.
Layers that read the same tensor (query, key and value; gate and up) share its mask.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# Odd constants of full period modulo 2^32 with good avalanche (MurmurHash3's finalizer),
# written as signed integers because torch has no unsigned arithmetic.
_FIRST, _SECOND = 0x85EBCA6B - 2**32, 0xC2B2AE35 - 2**32
_GOLDEN = np.uint32(0x9E3779B1)


class TokenKeys:
    """Holds the hash of every token of the present pass, of the shape of its ids."""

    def __init__(self) -> None:
        self.tensor: Tensor | None = None


def token_keys(seeds: Sequence[int], lengths: Sequence[int]) -> np.ndarray:
    """Return the int32 hashes of rows laid end to end; ``seeds`` are 32 bits a row."""
    keys = np.empty(sum(lengths), np.uint32)
    start = 0
    for seed, length in zip(seeds, lengths, strict=True):
        positions = np.arange(1, length + 1, dtype=np.uint32)
        keys[start : start + length] = _mixed(positions * _GOLDEN ^ np.uint32(seed))
        start += length
    return keys.view(np.int32)


def feature_keys(name: str, width: int) -> Tensor:
    """Return the int32 hashes of the ``width`` features of a layer's input."""
    seed = np.uint32(int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big"))
    features = np.arange(1, width + 1, dtype=np.uint32)
    return torch.from_numpy(_mixed(features * _GOLDEN ^ seed).view(np.int32).copy())


def dropped(x: Tensor, tokens: Tensor, features: Tensor, rate: float) -> Tensor:
    """Zero a share ``rate`` of ``x`` (..., width), and scale up the rest.

    ``tokens`` has the leading shape of ``x``, ``features`` its width.
    """
    h = (tokens.unsqueeze(-1) + features) * _FIRST
    h = (h ^ (h >> 15)) * _SECOND
    # h is uniform over all signed 32-bit integers.
    keep = h >= round(rate * 2**32) - 2**31
    return torch.where(keep, x * (1 / (1 - rate)), 0)


def _mixed(h: np.ndarray) -> np.ndarray:
    h = (h ^ (h >> np.uint32(16))) * np.uint32(_FIRST + 2**32)
    h = (h ^ (h >> np.uint32(13))) * np.uint32(_SECOND + 2**32)
    return h ^ (h >> np.uint32(16))
