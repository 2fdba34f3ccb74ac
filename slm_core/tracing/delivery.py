"""Send kept spans to Langfuse, once, and know what became of them.

The spans are re-created through an OpenTelemetry provider of our own, with their own ids and
times, and go through the Langfuse package's span processor to OpenTelemetry's OTLP exporter
(protobuf, one POST to ``/api/public/otel/v1/traces``). Two habits of that stack are not ours:

* The processor throws the exporter's answer away. ``_Session`` keeps it.
* The exporter repeats a request whose connection broke, and takes a redirect for success.
  Langfuse does not remove duplicates, so ``_Session`` turns any fault after which the request
  may have arrived into ``_Unanswered``, which the exporter does not repeat. It still repeats
  429 and 503, and a connection that never came about.

Imports langfuse, opentelemetry and requests: load this file only to send.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import requests
from langfuse import LangfuseOtelSpanAttributes as Attr
from langfuse import __version__ as langfuse_version
from langfuse._client.constants import LANGFUSE_TRACER_NAME
from langfuse._client.span_processor import LangfuseSpanProcessor
from opentelemetry import baggage, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from urllib3.exceptions import MaxRetryError, NewConnectionError

from slm_core.tracing.config import LangfuseConfig

State = Literal["accepted", "refused", "unknown"]


@dataclass(frozen=True)
class Outcome:
    """What became of a request: accepted (2xx), refused (nothing arrived) or unknown."""

    state: State
    reason: str = ""
    status: int | None = None


def send(spans: Sequence[dict[str, Any]], config: LangfuseConfig) -> Outcome:
    """Send ``spans`` in one request."""
    exporter = _Exporter(config)
    ids = _GivenIds()
    provider = TracerProvider(
        sampler=ALWAYS_ON,
        resource=Resource(
            _known({Attr.ENVIRONMENT: config.environment, Attr.RELEASE: config.release})
        ),
        id_generator=ids,
        # The default of 128 attributes silently evicts the oldest.
        span_limits=SpanLimits(
            max_span_attributes=SpanLimits.UNSET, max_span_attribute_length=SpanLimits.UNSET
        ),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(
        LangfuseSpanProcessor(
            public_key=config.public_key,
            secret_key=config.secret_key.get_secret_value(),
            base_url=config.base_url,
            flush_at=len(spans),  # so that all go in one request
            flush_interval=3600,
            span_exporter=exporter,
        )
    )
    tracer = provider.get_tracer(
        LANGFUSE_TRACER_NAME, langfuse_version, attributes={"public_key": config.public_key}
    )
    for span in spans:
        ids.trace_id, ids.span_id = int(span["trace_id"], 16), int(span["id"], 16)
        copy = tracer.start_span(
            span["name"],
            context=_parent_context(span),
            start_time=_nanoseconds(span["started_at"]),
            attributes=span_attributes(span),
        )
        if span["status"] == "error":
            copy.set_status(trace.StatusCode.ERROR, span["error"])
        copy.end(end_time=_nanoseconds(span["ended_at"]))
    provider.force_flush()
    provider.shutdown()
    return exporter.outcome(len(spans))


def probe(config: LangfuseConfig) -> Outcome:
    """Send an empty batch: it takes the whole way of a real one and leaves nothing behind."""
    exporter = _Exporter(config)
    exporter.export([])
    exporter.shutdown()
    return exporter.outcome(0)


def span_attributes(span: dict[str, Any]) -> dict[str, str]:
    """Return the Langfuse attributes of a kept span."""
    attributes = {
        Attr.TRACE_NAME: span["trace_name"],
        Attr.OBSERVATION_TYPE: span["kind"],
        Attr.OBSERVATION_INPUT: _json(span["input"]),
        Attr.OBSERVATION_OUTPUT: _json(span["output"]),
        Attr.OBSERVATION_LEVEL: "ERROR" if span["status"] == "error" else "DEFAULT",
        Attr.OBSERVATION_STATUS_MESSAGE: span["error"],
    }
    for key, value in span["metadata"].items():
        attributes[f"{Attr.OBSERVATION_METADATA}.{key}"] = _json(value)
        if span["parent_id"] is None:
            attributes[f"{Attr.TRACE_METADATA}.{key}"] = _json(value)
    if span["metrics"]:
        attributes[f"{Attr.OBSERVATION_METADATA}.metrics"] = _json(span["metrics"])
    return _known(attributes)


class _Unanswered(Exception):
    """The request may or may not have arrived. No requests error, so it is not repeated."""


class _Session(requests.Session):
    """A requests session that remembers its last outcome and never hides an unknown one."""

    outcome = Outcome("refused", "nothing was sent")

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:  # type: ignore[override]
        """Send one request; see the module for what is raised instead of being repeated."""
        try:
            response = super().request(*args, **kwargs)
        except requests.exceptions.RequestException as error:
            if _never_connected(error):
                self.outcome = Outcome("refused", f"no connection ({type(error).__name__})")
                raise
            self.outcome = Outcome("unknown", f"no answer ({type(error).__name__})")
            raise _Unanswered(self.outcome.reason) from error
        self.outcome = _read_answer(response)
        if self.outcome.state == "unknown":
            raise _Unanswered(self.outcome.reason)
        return response


class _Exporter(OTLPSpanExporter):
    """OpenTelemetry's exporter, addressed as Langfuse asks of one that is passed in."""

    def __init__(self, config: LangfuseConfig) -> None:
        keys = f"{config.public_key}:{config.secret_key.get_secret_value()}"
        self._seen = 0
        self._session = _Session()
        super().__init__(
            endpoint=f"{config.base_url.rstrip('/')}/api/public/otel/v1/traces",
            headers={
                "Authorization": "Basic " + base64.b64encode(keys.encode()).decode(),
                "x-langfuse-sdk-name": "python",
                "x-langfuse-sdk-version": langfuse_version,
                "x-langfuse-public-key": config.public_key,
                "x-langfuse-ingestion-version": "4",
            },
            timeout=config.timeout_seconds,
            compression=Compression.Gzip,
            session=self._session,
        )

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export ``spans`` and count them."""
        self._seen += len(spans)
        return super().export(spans)

    def outcome(self, expected: int) -> Outcome:
        """Return what became of the request, if it held all ``expected`` spans."""
        if self._seen != expected:
            return Outcome(
                "refused",
                f"only {self._seen} of {expected} spans reached the exporter; is OpenTelemetry "
                "switched off or limited by an OTEL_ variable?",
            )
        return self._session.outcome


def _read_answer(response: requests.Response) -> Outcome:
    status = response.status_code
    if 200 <= status < 300:
        rejected = _rejected_spans(response)
        if rejected:
            # Which of them is not said; reading back will tell.
            return Outcome("unknown", f"{rejected} spans rejected", status)
        return Outcome("accepted", status=status)
    # A server that failed midway, or a proxy that gave up on it, may have kept the spans.
    unknown = status in (408, 500, 502, 504)
    return Outcome("unknown" if unknown else "refused", f"HTTP {status}", status)


def _rejected_spans(response: requests.Response) -> int:
    if "protobuf" not in response.headers.get("content-type", ""):
        return 0  # Langfuse itself answers in JSON, without counts
    answer = ExportTraceServiceResponse.FromString(response.content)
    return answer.partial_success.rejected_spans


def _never_connected(error: requests.exceptions.RequestException) -> bool:
    if isinstance(error, requests.exceptions.ConnectTimeout | requests.exceptions.InvalidURL):
        return True
    cause = error.args[0] if error.args else None
    return isinstance(cause, MaxRetryError) and isinstance(cause.reason, NewConnectionError)


class _GivenIds(IdGenerator):
    """Give the next span the ids it was kept with."""

    trace_id = 0
    span_id = 0

    def generate_trace_id(self) -> int:
        return self.trace_id

    def generate_span_id(self) -> int:
        return self.span_id


def _parent_context(span: dict[str, Any]) -> Context:
    """Return a context that holds the span's parent and nothing of the running program."""
    if span["parent_id"] is None:
        return Context()
    parent = trace.SpanContext(
        trace_id=int(span["trace_id"], 16),
        span_id=int(span["parent_id"], 16),
        is_remote=False,
        trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED),
    )
    context = trace.set_span_in_context(trace.NonRecordingSpan(parent), Context())
    # Tells Langfuse's processor that the trace has its root elsewhere; it would mark a span
    # whose parent it does not see as a root of its own.
    return baggage.set_baggage("langfuse_trace_id", span["trace_id"], context)


def _nanoseconds(moment: str) -> int:
    when = datetime.fromisoformat(moment)
    return int(when.timestamp()) * 1_000_000_000 + when.microsecond * 1_000


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)


def _known(attributes: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in attributes.items() if value is not None}
