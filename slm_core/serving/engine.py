"""A few model processes behind one bounded queue.

Each request is computed alone by one process, so that its answer is the same whatever the
load. A process that dies is replaced and its request tried once more; since answers are
greedy, a stream goes on where it stopped. What it refuses: more waiting requests than the
queue holds.
"""

from __future__ import annotations

import itertools
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from slm_core.backends.base import Request
from slm_core.errors import BackendUnavailable, Overloaded
from slm_core.serving.keeper import Job, WorkerKeeper
from slm_core.serving.messages import Event, Failed, Load, ModelSource, Run

log = logging.getLogger(__name__)


class Health(NamedTuple):
    """How the engine fares."""

    workers: int
    ready: int
    waiting: int


class Engine:
    """Takes requests from any thread and has them answered by worker processes."""

    def __init__(
        self,
        *,
        workers: int | None = None,
        max_queue: int = 64,
        models_per_worker: int = 4,
        device: str = "auto",
    ) -> None:
        """Prepare the workers; ``start`` starts them. ``workers`` None is two, or one on one CPU.

        Args:
            workers: model processes.
            max_queue: requests that may wait beyond those being answered.
            models_per_worker: models that each process keeps in memory.
            device: where models run, as in ``LocalModel``.
        """
        count = workers or min(2, os.cpu_count() or 1)
        self._jobs: queue.Queue[Job] = queue.Queue(max_queue)
        self._numbers = itertools.count(1)
        self._closing = threading.Event()
        self._most = models_per_worker
        command = (str(models_per_worker), device)
        self._workers = [WorkerKeeper(self._jobs, self._closing, command) for _ in range(count)]

    def start(self, sources: Iterable[ModelSource]) -> None:
        """Start all processes and load ``sources`` into each.

        Raises:
            SlmError: as loading a model does; nothing is left running then.
        """
        preload = tuple(Load(next(self._numbers), source) for source in sources)
        for worker in self._workers:
            worker.preload = preload
            worker.start()
        try:
            for worker in self._workers:
                worker.wait_started()
        except BaseException:
            self.close()
            raise

    def submit(
        self,
        source: ModelSource,
        request: Request,
        *,
        max_tokens: int,
        stop: tuple[str, ...] = (),
        stream: bool = False,
        on_event: Callable[[Event], None],
    ) -> Job:
        """Queue a request. ``on_event`` gets pieces if ``stream``, then one Done or Failed.

        Raises:
            Overloaded: too many requests wait already.
        """
        run = Run(next(self._numbers), source, request, max_tokens, stop, stream)
        job = Job(run, on_event)
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise Overloaded(
                "The server has as many requests as it can queue; try again shortly.",
                waiting=self._jobs.qsize(),
            ) from None
        return job

    def load(self, source: ModelSource, timeout_seconds: float) -> None:
        """Have one worker load ``source``: a proof that it can be served.

        Raises:
            SlmError: as loading a model does.
            BackendUnavailable: no worker came to it in time.
        """
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        job = Job(Load(next(self._numbers), source), events.put)
        deadline = time.monotonic() + timeout_seconds
        try:
            self._jobs.put(job, timeout=timeout_seconds)
            event = events.get(timeout=max(0.0, deadline - time.monotonic()))
        except (queue.Full, queue.Empty):
            job.cancel()
            raise BackendUnavailable(
                "No worker was free to load a model.", seconds=timeout_seconds
            ) from None
        if isinstance(event, Failed):
            raise event.error

    def keep(self, sources: Sequence[ModelSource]) -> None:
        """Have every process load ``sources``: one that has nothing to do, or replaces a dead one.

        Otherwise each request would start the loading, give up waiting for it, and in the end
        have the process killed that was about to finish it. No more are loaded than fit.
        """
        preload = tuple(Load(next(self._numbers), one) for one in sources[: self._most])
        for worker in self._workers:
            worker.preload = preload

    def health(self) -> Health:
        """Return how many workers are ready and how many requests wait."""
        ready = sum(worker.ready for worker in self._workers)
        return Health(len(self._workers), ready, self._jobs.qsize())

    def close(self) -> None:
        """End all processes; requests still waiting fail."""
        self._closing.set()
        for worker in self._workers:
            worker.join()
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return
            job.report(Failed(BackendUnavailable("The server is shutting down.")))
