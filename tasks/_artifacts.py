"""What is shown in Prefect's dashboard never undoes, or turns red, what was done.

A server that is away or refuses an artifact leaves a warning in the log and nothing else. A
signal that stops the run is no failure of showing: it passes, unless one stops the run already.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


@contextmanager
def showing(what: str, *, unwinding: bool = False) -> Iterator[None]:
    """Show ``what`` in this block: an error ends the block and is logged, no more.

    Args:
        what: the word for the log.
        unwinding: a signal may be ending the run just now; nothing raised here takes its place.
    """
    caught = BaseException if unwinding else Exception
    try:
        yield
    except caught as error:
        log.warning("%s not shown in the dashboard error=%s", what, type(error).__name__)
