"""A thread that owns one model process: feeds it, watches it, replaces it when it dies."""

from __future__ import annotations

import logging
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from slm_core.errors import BackendUnavailable, SlmError
from slm_core.serving.messages import Cancel, Delta, Done, Event, Failed, Load, ModelSource, Run

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.05
_IDLE_SECONDS = 0.5
"""How often an idle worker's process is looked at."""
_CANCEL_SECONDS = 30.0
"""How long a process may go on with a cancelled answer before it is killed."""
_LONGEST_PAUSE_SECONDS = 10.0
"""Between two starts of a process that keeps dying."""


class Job:
    """One request on its way; events reach ``on_event`` in a worker's thread."""

    def __init__(self, message: Load | Run, on_event: Callable[[Event], None]) -> None:
        self.message = message
        self.cancelled = False
        self._on_event = on_event
        self._said = 0
        self._repeated = 0

    def cancel(self) -> None:
        """Stop caring: nothing more is reported."""
        self.cancelled = True

    def begin(self) -> None:
        """Note that an answer starts from its beginning, perhaps for the second time."""
        self._repeated = self._said

    def report(self, event: Event) -> None:
        """Pass an event on, without text that was passed on before."""
        if self.cancelled:
            return
        if isinstance(event, Delta):
            known = min(self._repeated, len(event.text))
            self._repeated -= known
            event = Delta(event.text[known:])
            self._said += len(event.text)
            if not event.text:
                return
        self._on_event(event)


class _Died(Exception):
    """The worker process ended, or had to be ended."""


class WorkerKeeper:
    """One thread and its process, taking requests from a queue that all keepers share."""

    def __init__(
        self, jobs: queue.Queue[Job], closing: threading.Event, command: tuple[str, ...]
    ) -> None:
        """Prepare the thread; ``command`` is the end of the worker's command line."""
        self.preload: tuple[Load, ...] = ()
        """Models that every new process loads before it takes a request, and a running one
        when it has nothing to do."""
        self.ready = False
        """Whether the process can take requests."""
        self._jobs = jobs
        self._closing = closing
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._loaded: set[ModelSource] = set()
        """What the process has loaded; more than it still holds, where that is too much."""
        self._started: queue.SimpleQueue[SlmError | _Died | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="slm-worker", daemon=True)

    @property
    def pid(self) -> int | None:
        """Id of the process; None while there is none."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start thread and process."""
        self._thread.start()

    def wait_started(self) -> None:
        """Return when the first process is ready.

        Raises:
            BackendUnavailable: it ended instead.
            SlmError: as loading a model does.
        """
        error = self._started.get()
        if isinstance(error, _Died):
            raise BackendUnavailable(f"A model process could not start: it {error}.")
        if error is not None:
            raise error

    def join(self) -> None:
        """Wait until the thread has ended its process; ``closing`` must be set."""
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._begin(strict=True)
        except (SlmError, _Died) as error:
            self._end()
            self._started.put(error)
            return
        self._started.put(None)
        pause = 0.0
        while not self._closing.is_set():
            try:
                if self._process is None:
                    self._closing.wait(pause)
                    self._begin(strict=False)
                self._next_job()
                pause = 0.0
            except _Died as death:
                log.warning("worker died pid=%s reason=%s", self.pid, death)
                self._end()
                pause = min(max(0.1, 2 * pause), _LONGEST_PAUSE_SECONDS)
        self._end()

    def _next_job(self) -> None:
        try:
            job = self._jobs.get(timeout=_IDLE_SECONDS)
        except queue.Empty:
            self._check_alive()
            self._load_ahead()
            return
        if job.cancelled:
            return
        try:
            try:
                self._exchange(job)
            except _Died as death:
                log.warning("worker died over a request pid=%s reason=%s", self.pid, death)
                if job.cancelled or self._closing.is_set():
                    raise
                self._end()
                self._begin(strict=False)
                self._exchange(job)
        except _Died as death:
            gone = f"No model process lived to answer this request: the last {death}."
            job.report(Failed(BackendUnavailable(gone)))
            raise

    def _load_ahead(self) -> None:
        """Load one model that another process has proved since this one began."""
        preload = self.preload
        self._loaded &= {load.source for load in preload}
        for load in preload:
            if load.source not in self._loaded:
                events: list[Event] = []
                self._exchange(Job(load, events.append))
                self._loaded.add(load.source)  # one that fails is not tried at every look
                log.info("worker loaded ahead pid=%s outcome=%s", self.pid, events[-1])
                return

    def _exchange(self, job: Job) -> None:
        """Have the process do ``job``, passing on what it says."""
        job.begin()
        self._send(job.message)
        deadline = None
        while True:
            event = self._receive(_POLL_SECONDS)
            if event is not None:
                job.report(event)
                if isinstance(event, Done):
                    self._loaded.add(job.message.source)
                if not isinstance(event, Delta):
                    return
            if job.cancelled and deadline is None:
                deadline = time.monotonic() + _CANCEL_SECONDS
                self._send(Cancel(job.message.number))
            if deadline is not None and time.monotonic() > deadline:
                raise _Died("did not let go of a cancelled request")
            if self._closing.is_set():
                raise _Died("was shut down with the server")

    def _begin(self, *, strict: bool) -> None:
        """Start a process and load the models; without ``strict`` one that fails is left out."""
        ours, theirs = socket.socketpair()
        self._connection = Connection(ours.detach())
        with theirs:
            descriptor = theirs.fileno()
            module = ("-m", "slm_core.serving.worker")
            try:
                self._process = subprocess.Popen(
                    [sys.executable, *module, str(descriptor), str(os.getpid()), *self._command],
                    pass_fds=(descriptor,),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                )
            except OSError as error:
                raise _Died(f"could not be started: {error}") from error
        self._loaded.clear()
        for load in self.preload:
            self._send(load)
            while (event := self._receive(_IDLE_SECONDS)) is None:
                if self._closing.is_set():
                    raise _Died("was shut down with the server")
            if isinstance(event, Failed):
                if strict:
                    raise event.error
                log.error("model cannot be loaded again: %s", event.error)
            self._loaded.add(load.source)
        self.ready = True
        log.info("worker ready pid=%d", self._process.pid)

    def _end(self) -> None:
        """End the process for good."""
        self.ready = False
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._connection = self._process = None

    def _check_alive(self) -> None:
        if self._process is None or self._process.poll() is not None:
            raise _Died("ended by itself")

    def _send(self, message: Load | Run | Cancel) -> None:
        try:
            self._open().send(message)
        except OSError as error:
            raise _Died(f"could not be reached: {error}") from error

    def _receive(self, seconds: float) -> Event | None:
        try:
            if not self._open().poll(seconds):
                return None
            event = self._open().recv()
        except (EOFError, OSError) as error:
            raise _Died("ended before it answered") from error
        assert isinstance(event, Delta | Done | Failed)
        return event

    def _open(self) -> Connection:
        if self._connection is None:
            raise _Died("was not running")
        return self._connection
