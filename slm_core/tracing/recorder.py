"""Record what a run did as one trace of nested spans.

    with RunTrace("retrain", run_id, sink=store.spans) as trace:
        with trace.span("build dataset", input={"calls": 120}) as span:
            dataset = build(...)
            span.update(output={"dataset": dataset.path}, metrics={"rows": 100})

Each span goes to the sink the moment it ends, before anything is sent anywhere: a killed run
keeps what it had finished. Recording never stops a run: if the sink fails, the spans wait in
memory and go with the next one; only the trace's own end raises, and only when nothing else
is being raised.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime, timedelta
from threading import Lock
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from slm_core.records import Metric, utc_now
from slm_core.tracing.ids import span_id, trace_id
from slm_core.tracing.payload import clean, clean_metrics, clean_text, error_text

log = logging.getLogger(__name__)

Kind = Literal["span", "chain", "agent", "tool", "retriever", "evaluator", "guardrail"]
"""Langfuse's observation types; they only choose the icon."""
Metrics = Mapping[str, Metric | float | int | None]

_current: ContextVar[Span | None] = ContextVar("slm_core_current_span", default=None)


class SpanSink(Protocol):
    """Where ended spans are kept until they are sent. The store's outbox is one."""

    def add(self, spans: Sequence[dict[str, Any]]) -> object:
        """Keep ``spans``; adding one twice keeps it once."""
        ...


class Span:
    """One step of a run, from ``with`` to the end of its block."""

    def __init__(
        self,
        trace: RunTrace,
        name: str,
        parent: Span | None,
        *,
        kind: Kind = "span",
        input: Any = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = clean_text(name)
        self.path = f"{parent.path}/{self.name}" if parent else self.name
        self.id = trace._new_id(self.path)
        self.parent_id = parent.id if parent else None
        self._trace = trace
        self._kind = kind
        self._input = clean(input)
        self._output: Any = None
        self._metadata: dict[str, Any] = clean(metadata or {})
        self._metrics: dict[str, dict[str, Any]] = {}

    def update(
        self,
        *,
        output: Any = None,
        metadata: Mapping[str, Any] | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """Say what came out. A later ``output`` replaces an earlier one; the rest is added."""
        if output is not None:
            self._output = clean(output)
        self._metadata.update(clean(metadata or {}))
        self._metrics.update(clean_metrics(metrics or {}))

    def __enter__(self) -> Self:
        self._started_at = self._trace._now()
        self._token = _current.set(self)
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _where: TracebackType | None,
    ) -> None:
        _current.reset(self._token)
        self._finish(self._started_at, self._trace._now(), error_text(error) if error else None)

    def _finish(self, started_at: datetime, ended_at: datetime, error: str | None) -> None:
        self._trace._keep(
            {
                "id": self.id,
                "trace_id": self._trace.trace_id,
                "parent_id": self.parent_id,
                "run_id": self._trace.run_id,
                "trace_name": self._trace.name,
                "name": self.name,
                "kind": self._kind,
                "started_at": started_at.isoformat(),
                "ended_at": ended_at.isoformat(),
                "status": "error" if error else "ok",
                "error": error,
                "input": self._input,
                "output": self._output,
                "metadata": self._metadata,
                "metrics": self._metrics,
            }
        )


class RunTrace:
    """The trace of one training or evaluation run; itself the outermost span."""

    def __init__(
        self,
        name: str,
        run_id: str,
        *,
        sink: SpanSink,
        input: Any = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Begin the trace of ``run_id``.

        Args:
            name: What kind of run, for example ``retrain``; the trace's name in Langfuse.
            run_id: Of the run; a resumed run adds its spans to the same trace.
            sink: Where ended spans are kept.
            input: What the run was given: ids, paths, counts.
            metadata: Facts about the run; values under a secret's key are removed.
        """
        self.name = clean_text(name)
        self.run_id = run_id
        self.trace_id = trace_id(run_id)
        self._sink = sink
        self._began = utc_now()
        self._ticks = time.monotonic()
        self._ordinals: Counter[str] = Counter()
        self._unkept: list[dict[str, Any]] = []
        self._lock = Lock()
        facts = {"run_id": run_id, **(metadata or {})}
        self._root = Span(self, name, None, kind="chain", input=input, metadata=facts)

    def span(
        self,
        name: str,
        *,
        kind: Kind = "span",
        input: Any = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Span:
        """Return a span to enter; it lies inside the span that is open here, if any."""
        return Span(self, name, self._parent(), kind=kind, input=input, metadata=metadata)

    def record(
        self,
        name: str,
        *,
        started_at: datetime,
        ended_at: datetime,
        kind: Kind = "span",
        input: Any = None,
        output: Any = None,
        metadata: Mapping[str, Any] | None = None,
        metrics: Metrics | None = None,
        error: str | None = None,
    ) -> None:
        """Add a span of something that is already over, such as one attempt of a worker.

        Args:
            name: What it was.
            started_at: With time zone.
            ended_at: With time zone, not before ``started_at``.
            kind: Its Langfuse type.
            input: What it was given.
            output: What came out.
            metadata: Further facts.
            metrics: Numbers, which become scores.
            error: Why it failed; None when it did not.
        """
        span = Span(self, name, self._parent(), kind=kind, input=input, metadata=metadata)
        span.update(output=output, metrics=metrics)
        span._finish(started_at, max(started_at, ended_at), clean_text(error) if error else None)

    def update(
        self,
        *,
        output: Any = None,
        metadata: Mapping[str, Any] | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """Say what came out of the whole run."""
        self._root.update(output=output, metadata=metadata, metrics=metrics)

    def __enter__(self) -> Self:
        self._root.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self._root.__exit__(kind, error, where)
        if self._unkept and error is None:
            self._sink.add(self._unkept)

    def _parent(self) -> Span:
        current = _current.get()
        # A span of another trace may be open around this one; it is no parent.
        return current if current is not None and current._trace is self else self._root

    def _now(self) -> datetime:
        """Return the time by a clock that cannot run backwards within the run."""
        return self._began + timedelta(seconds=time.monotonic() - self._ticks)

    def _new_id(self, path: str) -> str:
        with self._lock:
            ordinal = self._ordinals[path]
            self._ordinals[path] += 1
        return span_id(self.run_id, self._began.isoformat(), path, ordinal)

    def _keep(self, span: dict[str, Any]) -> None:
        with self._lock:
            self._unkept.append(span)
            try:
                self._sink.add(self._unkept)
            except Exception as error:  # any sink, any fault: the run goes on
                waiting = len(self._unkept)
                log.warning("spans not kept yet count=%d error=%s", waiting, error_text(error))
            else:
                self._unkept = []
