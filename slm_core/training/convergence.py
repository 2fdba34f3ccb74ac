"""Whether training still helps: early stopping, and what is odd about the curves.

Both watchers keep their whole state as plain data. It travels in the checkpoint, so a run
that was killed and resumed stops at the same step, and warns of nothing twice.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

NoteKind = Literal["divergence", "plateau", "gradient_spike"]

DIVERGENCE_NATS = 1.0
"""A smoothed loss this far above its best: a perplexity e times as high. Measured on the nano
student over 198 steps: at a sound learning rate (2e-4, 2e-3) the smoothed loss never rose by
more than 0.01; at 0.1 and 1.0 it rose by 5.8 and 7.0."""
SPIKE_RATIO = 10.0
"""A gradient norm of this many times the median of the last ones. In the same runs the sound
ones never went beyond 4.5; those that diverged reached 160 and more."""
_SMOOTHING = 0.9
"""Weight of the past in the smoothed loss: about ten steps."""
_FEWEST_NORMS = 10
_FEWEST_LOSSES = 10


def perplexity(loss: float | None) -> float | None:
    """Return e to the loss; None without a loss, or when it has no finite value."""
    if loss is None or not math.isfinite(loss):
        return None
    try:
        return math.exp(loss)
    except OverflowError:
        return None


class EarlyStopping:
    """Remembers the best validation loss, and counts validations that brought none better."""

    def __init__(self, patience: int | None, min_improvement: float = 0.0) -> None:
        """Stop after ``patience`` validations without a better loss; None never stops.

        A loss is better when it is lower than the last better one by more than
        ``min_improvement``. Many small gains add up: they are compared with the same loss
        until together they are enough.
        """
        self.patience = patience
        self.min_improvement = min_improvement
        self.best_step: int | None = None
        """Step of the lowest loss, whether or not the gain was large enough to count."""
        self.best_loss: float | None = None
        self.without_gain = 0
        """Validations since the last better loss."""
        self._to_beat: float | None = None

    def add(self, step: int, loss: float) -> bool:
        """Count a validation; True when its loss is the lowest so far: weights to keep.

        Call this before the checkpoint of ``step`` is saved. A loss that is not finite is
        never better.
        """
        usable = math.isfinite(loss)
        lowest = usable and (self.best_loss is None or loss < self.best_loss)
        if lowest:
            self.best_step, self.best_loss = step, loss
        if usable and (self._to_beat is None or loss < self._to_beat - self.min_improvement):
            self._to_beat, self.without_gain = loss, 0
        else:
            self.without_gain += 1
        return lowest

    @property
    def reason(self) -> str | None:
        """Why training should stop now; None when it should go on."""
        if self.patience is None or self.without_gain < self.patience:
            return None
        return f"no better validation loss for {self.without_gain} validations"

    def as_state(self) -> dict[str, Any]:
        """Return everything that the checkpoint must hold, as plain data."""
        return {
            "best_step": self.best_step,
            "best_loss": self.best_loss,
            "without_gain": self.without_gain,
            "to_beat": self._to_beat,
        }

    @classmethod
    def from_state(
        cls, state: Mapping[str, Any], patience: int | None, min_improvement: float = 0.0
    ) -> EarlyStopping:
        """Return the counter as ``as_state`` left it; the limits are those of the spec."""
        made = cls(patience, min_improvement)
        made.best_step, made.best_loss = state["best_step"], state["best_loss"]
        made.without_gain, made._to_beat = state["without_gain"], state["to_beat"]
        return made


class Note(NamedTuple):
    """Something about the curves that a person should know."""

    step: int
    kind: NoteKind
    message: str


class Watch:
    """Reads every step's loss and gradient norm, and says once what is wrong with them.

    A note is given when an episode begins. The next of its kind needs the curve to recover
    first; of gradient spikes there is one per ``window`` steps at most. Values that are not
    finite are left out: they stop the run elsewhere.
    """

    def __init__(self, window: int = 50, min_gain: float = 0.01) -> None:
        """Call it a plateau when ``window`` steps lower the smoothed loss by less than
        the share ``min_gain``.
        """
        self.window = window
        self.min_gain = min_gain
        self._seen = 0
        self._average = 0.0
        self._best: float | None = None
        self._gained_at = 0
        self._to_beat: float | None = None
        self._open: set[str] = set()
        self._norms: list[float] = []
        self._spike_at: int | None = None

    def add(self, step: int, loss: float, grad_norm: float) -> list[Note]:
        """Read one step; return what is new, mostly nothing."""
        notes = [self._spike(step, grad_norm)] if math.isfinite(grad_norm) else []
        if math.isfinite(loss):
            smooth = self._smooth(loss)
            if math.isfinite(smooth):  # at the end of the range rounding goes beyond it
                notes += [self._divergence(step, smooth), self._plateau(step, smooth)]
        return [note for note in notes if note]

    def as_state(self) -> dict[str, Any]:
        """Return everything that the checkpoint must hold, as plain data."""
        return {
            "seen": self._seen,
            "average": self._average,
            "best": self._best,
            "gained_at": self._gained_at,
            "to_beat": self._to_beat,
            "open": sorted(self._open),
            "norms": list(self._norms),
            "spike_at": self._spike_at,
        }

    @classmethod
    def from_state(
        cls, state: Mapping[str, Any], window: int = 50, min_gain: float = 0.01
    ) -> Watch:
        """Return the watch as ``as_state`` left it."""
        made = cls(window, min_gain)
        made._seen, made._average = state["seen"], state["average"]
        made._best, made._to_beat = state["best"], state["to_beat"]
        made._gained_at, made._spike_at = state["gained_at"], state["spike_at"]
        made._open, made._norms = set(state["open"]), list(state["norms"])
        return made

    def _smooth(self, loss: float) -> float:
        self._seen += 1
        self._average = _SMOOTHING * self._average + (1 - _SMOOTHING) * loss
        # The average began at zero; this takes the zero out again.
        return self._average / (1 - _SMOOTHING**self._seen)

    def _divergence(self, step: int, smooth: float) -> Note | None:
        best = self._best
        self._best = smooth if best is None else min(best, smooth)
        if best is None or self._seen < _FEWEST_LOSSES or smooth < best + DIVERGENCE_NATS:
            self._open.discard("divergence")
            return None
        return self._first(
            step,
            "divergence",
            f"The loss has risen to {smooth:.3f} (mean of about 10 steps) from {best:.3f} at its "
            "best. Lower the learning rate, or look at the rows of these steps.",
        )

    def _plateau(self, step: int, smooth: float) -> Note | None:
        if self._to_beat is None or smooth < self._to_beat * (1 - self.min_gain):
            self._to_beat, self._gained_at = smooth, step
            self._open.discard("plateau")
            return None
        if step - self._gained_at < self.window:
            return None
        return self._first(
            step,
            "plateau",
            f"The loss has not fallen by {self.min_gain:.0%} for {step - self._gained_at} steps; "
            f"it stays near {smooth:.3f}. More epochs will not help as things are.",
        )

    def _spike(self, step: int, norm: float) -> Note | None:
        usual = statistics.median(self._norms) if len(self._norms) >= _FEWEST_NORMS else None
        self._norms = [*self._norms, norm][-self.window :]
        if not usual or norm <= usual * SPIKE_RATIO:  # a usual norm of 0 compares with nothing
            return None
        recent = self._spike_at is not None and step - self._spike_at < self.window
        self._spike_at = step
        if recent:
            return None
        return Note(
            step,
            "gradient_spike",
            f"The gradient's norm is {norm:.3g}, {norm / usual:.0f} times the usual {usual:.3g}; "
            "it was scaled down to max_grad_norm. Look at the rows of this step.",
        )

    def _first(self, step: int, kind: NoteKind, message: str) -> Note | None:
        if kind in self._open:
            return None
        self._open.add(kind)
        return Note(step, kind, message)
