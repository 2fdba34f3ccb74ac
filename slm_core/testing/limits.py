"""Limits that the kernel puts on a process: a disk that is full, without filling one.

A file that would grow beyond the limit stays half-written and fails with EFBIG, at the same
places as on a full disk. Linux only.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond ``size_bytes`` meanwhile."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def limit_files_for_good(pid: int, size_bytes: int) -> None:
    """Let no file of process ``pid`` grow beyond ``size_bytes`` as long as it lives."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size_bytes, size_bytes))
