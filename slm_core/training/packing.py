"""Which rows share a forward pass: pure functions of their lengths."""

from __future__ import annotations

from collections.abc import Sequence

_LOOK_AHEAD = 24


class Bins:
    """Best fit, one item after the other: each goes where the least room remains after it.

    Online best fit needs at most 1.7 times the fewest bins (Johnson et al. 1974); on rows of
    chat length it fills bins of some thousand tokens to more than 97 % (measured).
    """

    def __init__(self, capacity: int, limit: int | None = None) -> None:
        self.contents: list[list[int]] = []
        self._room: list[int] = []
        self._capacity = capacity
        self._limit = limit

    def add(self, item: int, length: int) -> bool:
        """Put ``item`` into a bin; False when it fits nowhere and no bin may be opened.

        An item longer than a bin gets one of its own.
        """
        best = min(
            (number for number, room in enumerate(self._room) if room >= length),
            key=self._room.__getitem__,
            default=None,
        )
        if best is None:
            if self._limit is not None and len(self.contents) >= self._limit:
                return False
            self.contents.append([])
            self._room.append(self._capacity)
            best = len(self.contents) - 1
        self.contents[best].append(item)
        self._room[best] -= length
        return True


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Return the positions in ``lengths``, grouped so that no group sums over ``capacity``."""
    bins = Bins(capacity)
    for position, length in enumerate(lengths):
        bins.add(position, length)
    return bins.contents


def steps_by_tokens(
    order: Sequence[int], lengths: Sequence[int], capacity: int, passes: int
) -> list[list[int]]:
    """Cut ``order`` into steps that each fit into ``passes`` bins of ``capacity`` tokens.

    A row that no longer fits waits for the next step while a few shorter ones behind it may
    fill the gaps, so every row is read exactly once and steps are nearly full.
    """
    waiting = list(order)
    steps: list[list[int]] = []
    while waiting:
        bins = Bins(capacity, passes)
        taken: list[int] = []
        deferred: list[int] = []
        position = 0
        while position < len(waiting) and len(deferred) < _LOOK_AHEAD:
            row = waiting[position]
            (taken if bins.add(row, lengths[row]) else deferred).append(row)
            position += 1
        waiting = deferred + waiting[position:]
        steps.append(taken)
    return steps


def share(weights: Sequence[int], parts: int) -> list[list[int]]:
    """Deal the positions of ``weights`` to ``parts`` so that their sums are nearly equal.

    Longest processing time first: at most 4/3 of the best possible (Graham 1969).
    """
    dealt: list[list[int]] = [[] for _ in range(parts)]
    sums = [0] * parts
    for position in sorted(range(len(weights)), key=lambda p: -weights[p]):
        least = sums.index(min(sums))
        dealt[least].append(position)
        sums[least] += weights[position]
    return [sorted(part) for part in dealt]
