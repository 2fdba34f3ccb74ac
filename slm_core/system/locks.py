"""Locks on open files, which the kernel frees when their last holder ends, however it ends."""

from __future__ import annotations

import fcntl
import time

_LOOK_SECONDS = 0.02


def try_lock(handle: int, *, shared: bool = False) -> bool:
    """Take the lock of an open file, or a share of it; False when somebody else has it."""
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock_within(handle: int, seconds: float) -> bool:
    """Take the lock of an open file; False when somebody else still has it after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not try_lock(handle):
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_SECONDS)
    return True
