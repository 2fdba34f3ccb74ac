"""How a child ends when the process that started it does, however that happens."""

from __future__ import annotations

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Ask the kernel to send us ``number`` at the end of the thread that started us.

    Only Linux can; elsewhere a child has to notice by itself, as after a parent that had ended
    before this call (``os.getppid()``).
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
