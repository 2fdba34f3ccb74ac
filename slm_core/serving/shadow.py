"""Asks an adapter what a caller has already been answered, and compares.

One question at a time, from a bounded queue, in a thread of its own; whoever needs the model
to answer a caller takes it away. Nothing here is ever waited for, and nothing raises. What
could not be compared is counted with its reason.
"""

from __future__ import annotations

import logging
import queue
import threading
from typing import NamedTuple

from slm_core.backends.base import Completion, Request
from slm_core.errors import Overloaded, PromptTooLong
from slm_core.records import TrafficOutcome
from slm_core.serving.engine import Engine
from slm_core.serving.exchange import Compare, Question, Record, student_exchange
from slm_core.serving.keeper import Job
from slm_core.serving.messages import Done, Event, Failed
from slm_core.serving.router import Lane
from slm_core.serving.tally import Tally

log = logging.getLogger(__name__)


class ShadowTask(NamedTuple):
    """A question that was answered, and who is to be asked it too."""

    lane: Lane
    question: Question
    request: Request
    max_tokens: int
    stops: tuple[str, ...]
    given: str


class Shadows:
    """Compares answers while nobody else needs the models."""

    def __init__(
        self,
        engine: Engine,
        tally: Tally,
        compare: Compare,
        record: Record,
        *,
        timeout_seconds: float,
        max_queue: int,
    ) -> None:
        self._engine = engine
        self._tally = tally
        self._compare = compare
        self._record = record
        self._timeout_seconds = timeout_seconds
        self._tasks: queue.Queue[ShadowTask] = queue.Queue(max_queue)
        self._lock = threading.Lock()
        self._asked: tuple[Job, queue.SimpleQueue[Event | None]] | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="slm-shadow", daemon=True)

    def start(self) -> None:
        """Begin to compare."""
        self._thread.start()

    def offer(self, task: ShadowTask) -> None:
        """Queue a comparison, or count that there was no room for it."""
        try:
            self._tasks.put_nowait(task)
        except queue.Full:
            self._tally.count(task.lane.route, "shadow", TrafficOutcome.SKIPPED)

    def make_room(self) -> None:
        """Let go of the model, for a caller who waits for it."""
        with self._lock:
            if self._asked is not None:
                job, events = self._asked
                job.cancel()
                events.put(None)

    def close(self) -> None:
        """Stop; comparisons that still wait are counted as skipped."""
        self._closing.set()
        self.make_room()
        if self._thread.ident is not None:
            self._thread.join()
        while not self._tasks.empty():
            task = self._tasks.get_nowait()
            self._tally.count(task.lane.route, "shadow", TrafficOutcome.SKIPPED)

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                task = self._tasks.get(timeout=0.2)
            except queue.Empty:
                continue
            try:
                outcome = self._compared(task)
            except Exception as error:
                # A comparison that breaks must not end all that come after it.
                log.error("comparison failed error=%s", type(error).__name__)
                outcome = TrafficOutcome.ERROR
            self._tally.count(task.lane.route, "shadow", outcome)

    def _compared(self, task: ShadowTask) -> TrafficOutcome:
        answer = self._ask(task)
        if not isinstance(answer, Completion):
            return answer
        question = task.question
        outcome = self._compare(
            question.track, task.request.tools, task.given, answer.text, answer.finish_reason
        )
        adapter_id = task.lane.route.adapter_id
        tags = {"shadow": adapter_id, "comparison": outcome.value}
        self._record(student_exchange(question, adapter_id, answer, tags))
        return outcome

    def _ask(self, task: ShadowTask) -> Completion | TrafficOutcome:
        events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        with self._lock:
            try:
                job = self._engine.submit(
                    task.lane.source,
                    task.request,
                    max_tokens=task.max_tokens,
                    stop=task.stops,
                    on_event=events.put,
                )
            except Overloaded:
                return TrafficOutcome.SKIPPED
            self._asked = job, events
        try:
            event = events.get(timeout=self._timeout_seconds)
        except queue.Empty:
            job.cancel()
            return TrafficOutcome.TIMEOUT
        finally:
            with self._lock:
                self._asked = None
        match event:
            case None:
                return TrafficOutcome.SKIPPED
            case Failed(PromptTooLong()):
                return TrafficOutcome.UNSUPPORTED
            case Done(Completion() as completion):
                return completion
            case _:
                return TrafficOutcome.ERROR
