"""Greedy decoding of a batch of prompts, one token a step. Imports torch.

Leaner than a general ``generate``: the start that all prompts share is read once, keys and
values stay in one buffer instead of being copied at every step, and a row leaves the batch
with its last token. The same batch gives the same tokens on every run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

_WORTH_SHARING = 16
"""Tokens: reading a shorter common start apart would save less than it costs."""


class GreedyBatch:
    """The state of one batch: what was read so far, and the next token of every row."""

    @torch.inference_mode()
    def __init__(self, network: Any, prompts: Sequence[list[int]], room: int) -> None:
        """Read ``prompts`` (token ids, none empty); ``room`` is the most tokens to come."""
        self._network = network
        self._device = network.device
        longest = max(map(len, prompts))
        self._cache = _cache(network.config, len(prompts), longest + room)
        # A sliding window counts columns, so no padding may stand between a row's tokens.
        full = all(isinstance(layer, _BufferLayer) for layer in self._cache.layers)
        shared = _shared_length(prompts) if full else 0
        # Left padding, between the shared start and the rest: rows end side by side.
        padding = torch.tensor([longest - len(prompt) for prompt in prompts])[:, None]
        columns = torch.arange(longest)[None]
        ids = torch.tensor(
            [
                [*prompt[:shared], *[0] * (longest - len(prompt)), *prompt[shared:]]
                for prompt in prompts
            ]
        )
        real = (columns < shared) | (columns >= shared + padding)
        positions = torch.where(columns < shared, columns, (columns - padding).clamp(min=0))
        self._mask = real.to(self._device) if padding.any() else None
        self._positions = positions[:, -1:].to(self._device)
        if shared:
            self._forward(ids[:1, :shared], positions[:1, :shared], None)
            self._cache.batch_repeat_interleave(len(prompts))
        self._next = self._forward(ids[:, shared:], positions[:, shared:], self._mask)

    def tokens(self) -> list[int]:
        """Return the next token of every row."""
        return self._next.tolist()

    @torch.inference_mode()
    def advance(self, keep: Sequence[int]) -> None:
        """Drop all rows but ``keep`` (they take this order) and read their next tokens."""
        if len(keep) < len(self._next):
            index = torch.tensor(keep, device=self._device)
            self._cache.batch_select_indices(index)
            self._next, self._positions = self._next[index], self._positions[index]
            self._mask = None if self._mask is None else self._mask[index]
        self._positions = self._positions + 1
        if self._mask is not None:
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(keep), 1)], dim=1)
        self._next = self._forward(self._next[:, None], self._positions, self._mask)

    def _forward(self, ids: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        output = self._network(
            input_ids=ids.to(self._device),
            position_ids=positions.to(self._device),
            attention_mask=mask,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].argmax(-1)


def decode_greedily(
    network: Any,
    prompts: Sequence[list[int]],
    *,
    limits: Sequence[int],
    end_ids: Collection[int],
) -> Iterator[list[tuple[int, int]]]:
    """Yield, step by step, (row, token) of every row that is still going.

    A row's last pair holds one of ``end_ids``, or is its ``limits[row]``-th (at least 1).
    """
    batch = GreedyBatch(network, prompts, max(limits))
    rows = list(range(len(prompts)))
    count = 0
    while True:
        count += 1
        pairs = list(zip(rows, batch.tokens(), strict=True))
        yield pairs
        going = [
            at
            for at, (row, token) in enumerate(pairs)
            if token not in end_ids and count < limits[row]
        ]
        if not going:
            return
        going = _fill_holes(going)
        rows = [rows[at] for at in going]
        batch.advance(going)


def _fill_holes(going: Sequence[int]) -> list[int]:
    """Return ``going`` reordered so that as few rows as possible change their place."""
    staying = set(going)
    movers = [at for at in going if at >= len(going)]
    return [at if at in staying else movers.pop() for at in range(len(going))]


def _shared_length(prompts: Sequence[list[int]]) -> int:
    """Return how many first tokens all prompts share, leaving each at least one of its own."""
    if len(prompts) == 1:
        return 0
    # What the first and the last in order share, all share.
    pairs = enumerate(zip(min(prompts), max(prompts), strict=False))
    shortest = min(map(len, prompts))
    shared = next((at for at, (a, b) in pairs if a != b), shortest)
    shared = min(shared, shortest - 1)
    return shared if shared >= _WORTH_SHARING else 0


def _cache(config: Any, rows: int, length: int) -> DynamicCache:
    cache = DynamicCache(config=config)
    # Sliding-window and other special layers keep their own way.
    cache.layers = [
        _BufferLayer(rows, length) if type(layer) is DynamicLayer else layer
        for layer in cache.layers
    ]
    return cache


class _BufferLayer(DynamicLayer):
    """Keys and values of one layer in a buffer of full size; ``keys`` and ``values`` are views."""

    def __init__(self, rows: int, length: int) -> None:
        super().__init__()
        self._rows = rows
        self._length = length
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if self._buffers is None:
            self.lazy_initialization(key_states, value_states)
            self._buffers = (self._buffer(key_states), self._buffer(value_states))
        start = self.get_seq_length()
        keys, values = self._show(key_states.shape[0], start + key_states.shape[2])
        keys[:, :, start:] = key_states
        values[:, :, start:] = value_states
        return keys, values

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Copy the one row read so far into ``repeats`` rows."""
        for held in self._show(repeats, self.get_seq_length()):
            held[1:] = held[:1]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep ``indices``; a row may only move to the place of one that leaves."""
        moves = [(new, old) for new, old in enumerate(indices.tolist()) if new != old]
        for held in self._show(self._rows, self.get_seq_length()):
            for new, old in moves:
                held[new] = held[old]
        self._show(len(indices), self.get_seq_length())

    def _buffer(self, like: Tensor) -> Tensor:
        return like.new_empty(self._rows, like.shape[1], self._length, like.shape[3])

    def _show(self, rows: int, length: int) -> tuple[Tensor, Tensor]:
        """Let ``keys`` and ``values`` be the first ``rows`` and ``length`` of the buffers."""
        assert self._buffers is not None
        keys, values = self._buffers
        self.keys, self.values = keys[:rows, :, :length], values[:rows, :, :length]
        return self.keys, self.values
