"""The worker's sign of life, and how long its absence means a hang.

Each rank overwrites one line of fixed size, so a beat costs microseconds and needs no more
disk than the first one. The parent compares how long a beat stays away with what it has
seen in the same phase: a long validation is no hang, a step that never ends is one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

Phase = Literal["load", "probe", "train", "eval", "save", "publish"]

FLOOR_SECONDS: Mapping[str, float] = MappingProxyType(
    {
        "load": 600.0,
        "probe": 900.0,
        # Noticed and ended within a minute.
        "train": 55.0,
        "eval": 55.0,
        "save": 300.0,
        "publish": 300.0,
    }
)
"""No silence shorter than this is a hang."""

_LINE_BYTES = 128
_TIMES_LONGEST = 5.0
# The most that one look may add to a silence: while this process itself stood still (a
# paused container, a stopped shell) the worker most likely did too.
_LOOK_SECONDS = 1.0


class Beat(NamedTuple):
    """One sign of life."""

    t: float
    """``time.monotonic()``, the same clock in all processes of this boot."""
    step: int
    """Last finished step."""
    phase: Phase
    """What began at ``t``, or goes on."""
    pid: int


class Heartbeat:
    """Writes one rank's beats."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def beat(self, step: int, phase: Phase) -> None:
        """Say that ``phase`` goes on, or begins now, after ``step`` finished steps."""
        said = {"t": time.monotonic(), "step": step, "phase": phase, "pid": os.getpid()}
        line = json.dumps(said).encode().ljust(_LINE_BYTES - 1) + b"\n"
        os.pwrite(self._file, line, 0)


def read_beat(path: Path) -> Beat | None:
    """Return the newest beat; None when there is none, or it is being written."""
    try:
        said = json.loads(path.read_bytes())
        beat = Beat(float(said["t"]), int(said["step"]), said["phase"], int(said["pid"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return beat if beat.phase in get_args(Phase) else None


class HangWatch:
    """Watches one rank's beats. Look often: what stands still between looks is forgiven."""

    def __init__(
        self,
        path: Path,
        *,
        floors: Mapping[str, float] = FLOOR_SECONDS,
        times_longest: float = _TIMES_LONGEST,
        now: float | None = None,
    ) -> None:
        self._path = path
        self._floors = floors
        self._times = times_longest
        self._longest: dict[str, float] = {}
        self._looked = self._born = time.monotonic() if now is None else now
        self._silent = 0.0
        self.last: Beat | None = None

    def silent_too_long(self, now: float | None = None) -> float | None:
        """Return the seconds since the last sign of life if they mean a hang, else None."""
        now = time.monotonic() if now is None else now
        beat = read_beat(self._path)
        # An older beat is that of an earlier attempt.
        if beat is not None and beat.t >= self._born and beat != self.last:
            # After a look away, beats may have come and gone unseen: nothing to learn from.
            if self.last is not None and now - self._looked <= _LOOK_SECONDS:
                interval = beat.t - self.last.t
                phase = self.last.phase
                self._longest[phase] = max(self._longest.get(phase, 0.0), interval)
            self.last = beat
            self._silent = 0.0
        else:
            self._silent += min(now - self._looked, _LOOK_SECONDS)
        self._looked = now
        return self.silence(now) if self._silent > self.limit_seconds else None

    @property
    def limit_seconds(self) -> float:
        """The longest silence that the present phase may have."""
        return max(self._floors[self.phase], self._times * self._longest.get(self.phase, 0.0))

    @property
    def phase(self) -> Phase:
        """What the worker was doing when it last gave a sign."""
        return self.last.phase if self.last else "load"

    def silence(self, now: float | None = None) -> float:
        """Return the seconds since the last sign of life, or since the watch began."""
        now = time.monotonic() if now is None else now
        return now - (self.last.t if self.last else self._born)
