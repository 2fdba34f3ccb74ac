"""What training asks of whoever knows about GPUs. Stages never import each other: the task
that starts a training passes an object of ``slm_core.health`` that fits this."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from slm_core.records import Fault, Triage


class Doctor(Protocol):
    """Watches the GPUs while a worker runs, and examines them when it has died."""

    def watch(self, gpus: tuple[str, ...]) -> AbstractContextManager[None]:
        """Watch kernel log and driver, in processes of their own, while the context lasts."""
        ...

    def alarm(self) -> Fault | None:
        """Return the first fatal finding since the watch began, or None; never blocks."""
        ...

    def examine(self, fault: Fault, words: str, gpus: tuple[str, ...]) -> Triage:
        """Return what to do after ``fault``. ``words`` is the end of the worker's log.

        Called with the worker dead; bounded in time, whatever the driver does.
        """
        ...
