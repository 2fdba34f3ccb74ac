"""From rows to the tensors of one forward pass. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from slm_core.training.engine.attention import Borders
from slm_core.training.engine.dropout import token_keys
from slm_core.training.rows import Row


class Numbered(NamedTuple):
    """A row, and the seed of its dropout in the present step."""

    row: Row
    seed: int

    @property
    def tokens(self) -> int:
        """Length of the row."""
        return len(self.row.ids)


class Pass(NamedTuple):
    """Tensors of one forward pass, on the device."""

    ids: Tensor
    """(lines, length)."""
    positions: Tensor
    """Like ``ids``: each row counts from zero."""
    keys: Tensor
    """Like ``ids``: hash of each token, see ``dropout.py``."""
    predicting: Tensor
    """Places in the flattened ``ids`` whose next token is supervised."""
    targets: Tensor
    """Those next tokens."""
    borders: Borders | None
    """Of the rows in the one line; None when each line is a row."""


def packed(
    rows: Sequence[Numbered], device: torch.device, *, longest: int, multiple: int = 1
) -> Pass:
    """Lay ``rows`` end to end in one line, filled up to a ``multiple`` of tokens.

    Args:
        rows: what to lay.
        device: where the tensors go, without waiting for them to arrive.
        longest: at least the longest row; the same number in every pass of a run.
        multiple: shapes that differ less are cheaper to compile for and to multiply with.
    """
    lengths = [row.tokens for row in rows]
    used = sum(lengths)
    total = -(-used // multiple) * multiple
    ids = np.zeros(total, np.int64)
    positions = np.zeros(total, np.int64)
    keys = np.zeros(total, np.int32)
    ids[:used] = np.concatenate([row.row.ids for row in rows])
    positions[:used] = np.concatenate([np.arange(length) for length in lengths])
    keys[:used] = token_keys([row.seed for row in rows], lengths)
    bounds = np.cumsum([0, *lengths])
    # The filling is cut up like rows: one segment longer than `longest` would give NaN.
    filling = np.arange(used, total, longest)[1:]
    ends = [total] if total > used else []
    bounds = np.concatenate([bounds, filling, ends]).astype(np.int32)
    predicting, targets = _supervised([row.row for row in rows], bounds[: len(rows)].tolist())
    return Pass(
        _sent(ids[None], device),
        _sent(positions[None], device),
        _sent(keys[None], device),
        _sent(predicting, device),
        _sent(targets, device),
        Borders(_sent(bounds, device), longest),
    )


def padded(rows: Sequence[Numbered], device: torch.device) -> Pass:
    """Give each row a line, padded on the right to the longest."""
    longest = max(row.tokens for row in rows)
    ids = np.zeros((len(rows), longest), np.int64)
    keys = np.zeros((len(rows), longest), np.int32)
    for number, row in enumerate(rows):
        ids[number, : row.tokens] = row.row.ids
        keys[number, : row.tokens] = token_keys([row.seed], [row.tokens])
    positions = np.tile(np.arange(longest), (len(rows), 1))
    starts = [number * longest for number in range(len(rows))]
    predicting, targets = _supervised([row.row for row in rows], starts)
    return Pass(
        _sent(ids, device),
        _sent(positions, device),
        _sent(keys, device),
        _sent(predicting, device),
        _sent(targets, device),
        None,
    )


def _supervised(rows: Sequence[Row], starts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the places that predict a supervised token, and these tokens."""
    places: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    for row, start in zip(rows, starts, strict=True):
        # A position predicts the token after it; nothing predicts a row's first token.
        learned = np.flatnonzero(row.supervised[1:])
        places.append(learned + start)
        targets.append(np.asarray(row.ids)[learned + 1])
    return np.concatenate(places).astype(np.int64), np.concatenate(targets).astype(np.int64)


def _sent(array: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor
