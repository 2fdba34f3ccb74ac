"""How a worker learns that it should end."""

from __future__ import annotations

import os
import signal
from types import FrameType

from slm_core.training.faults import ExitCode


class StopRequest:
    """Remembers that a signal, or the end of the parent, asked this process to end."""

    def __init__(self) -> None:
        self._asked = False
        self._training = False
        self._parent = os.getppid()
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def wait_for_step(self) -> None:
        """From now on there is state worth saving: let the present step finish first."""
        self._training = True

    @property
    def asked(self) -> bool:
        """True once this process should save and end."""
        return self._asked or os.getppid() != self._parent

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self._training:
            # Somewhere inside an import or a model load: nothing to save, no safe unwinding.
            os._exit(ExitCode.INTERRUPTED)
        self._asked = True
