"""A Langfuse on loopback: takes real OTLP protobuf and scores, answers what the package asks.

It answers as Langfuse does, two habits included: a span sent twice is there twice, and with
``shown_after_seconds`` a span is shown some time after it was taken (15 to 30 seconds in
Langfuse itself). Faults are scripted, one per upload, so that a test can lose an answer after
the spans were taken.
"""

from __future__ import annotations

import base64
import gzip
import json
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from slm_core.testing.loopback import LoopbackHandler, LoopbackServer
from slm_core.tracing import LangfuseConfig

UPLOADS = "/api/public/otel/v1/traces"
Fault = int | Literal["take and close", "close"]
"""An HTTP status to refuse with, or a connection closed with or without taking the spans."""


@dataclass(frozen=True)
class ReceivedSpan:
    """One span as it arrived, its attributes decoded."""

    id: str
    trace_id: str
    parent_id: str | None
    name: str
    start_ns: int
    end_ns: int
    failed: bool
    attributes: dict[str, Any]
    resource: dict[str, Any]
    arrived: float = field(default_factory=time.monotonic)


class LangfuseReceiver(LoopbackServer):
    """The server; a context manager. Attributes hold what arrived."""

    def __init__(
        self,
        *,
        public_key: str = "pk-lf-test",
        secret_key: str = "sk-lf-test",
        version: str = "4.60.0",
        shown_after_seconds: float = 0.0,
        upload_seconds: float = 0.0,
        can_read_back: bool = True,
    ) -> None:
        super().__init__(_Handler)
        self.public_key = public_key
        self.secret_key = secret_key
        self.version = version
        self.shown_after_seconds = shown_after_seconds
        self.upload_seconds = upload_seconds
        """How long an upload goes unanswered after its spans were taken."""
        self.can_read_back = can_read_back
        self.spans: list[ReceivedSpan] = []
        self.scores: dict[str, dict[str, Any]] = {}
        self.uploads: list[dict[str, str]] = []
        """Headers of each upload, in lower case."""
        self.upload_faults: deque[Fault] = deque()
        self.score_faults: deque[int | None] = deque()
        """One per request with scores: a status to refuse it with, or None to take it."""

    def config(self, **changes: Any) -> LangfuseConfig:
        """Return a configuration with the right keys and short waits."""
        values = {
            "public_key": self.public_key,
            "secret_key": self.secret_key,
            "base_url": self.base_url,
            "timeout_seconds": 2.0,
            "confirm_seconds": 0.0,
        }
        return LangfuseConfig(**(values | changes))


class _Handler(LoopbackHandler):
    owner: LangfuseReceiver

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        if address.path == "/api/public/health":
            self.answer(200, {"status": "OK", "version": self.owner.version})
        elif not self._known_keys():
            self.answer(401, {"message": "Invalid credentials"})
        elif address.path == "/api/public/projects":
            project = {"id": "p1", "name": "test", "metadata": {}}
            project["organization"] = {"id": "o1", "name": "test"}
            self.answer(200, {"data": [project]})
        elif address.path == "/api/public/v2/observations" and self.owner.can_read_back:
            self.answer(200, self._observations(parse_qs(address.query)))
        else:
            self.answer(404, {"message": "Not found"})

    def do_POST(self) -> None:
        body = self.body()
        if not self._known_keys():
            self.answer(401, {"message": "Invalid credentials"})
        elif self.path == UPLOADS:
            self._take_spans(body)
        elif self.path == "/api/public/scores":
            self._take_scores(body)
        else:
            self.answer(404, {"message": "Not found"})

    def _take_spans(self, body: bytes) -> None:
        self.owner.uploads.append({key.lower(): value for key, value in self.headers.items()})
        fault = self.owner.upload_faults.popleft() if self.owner.upload_faults else None
        if fault is None or fault == "take and close":
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            self.owner.spans += _decode(ExportTraceServiceRequest.FromString(body))
            time.sleep(self.owner.upload_seconds)
        if isinstance(fault, int):
            self.answer(fault, {"message": "scripted"})
        elif fault is None:
            self.answer(200, {})
        else:
            self.close_connection = True  # the client sees no answer

    def _take_scores(self, body: bytes) -> None:
        fault = self.owner.score_faults.popleft() if self.owner.score_faults else None
        if fault is not None:
            self.answer(fault, {"message": "scripted"})
            return
        for score in json.loads(body):
            self.owner.scores[score["id"]] = score
        self.answer(202, {"message": "Accepted"})

    def _observations(self, query: dict[str, list[str]]) -> dict[str, Any]:
        shown = [
            {
                "id": span.id,
                "traceId": span.trace_id,
                "projectId": "p1",
                "type": "SPAN",
                "startTime": "2026-01-01T00:00:00Z",
            }
            for span in self.owner.spans
            if span.trace_id == query["traceId"][0]
            and time.monotonic() - span.arrived >= self.owner.shown_after_seconds
        ]
        return {"data": shown, "meta": {}}

    def _known_keys(self) -> bool:
        keys = f"{self.owner.public_key}:{self.owner.secret_key}".encode()
        return self.headers.get("authorization") == f"Basic {base64.b64encode(keys).decode()}"


def _decode(request: ExportTraceServiceRequest) -> list[ReceivedSpan]:
    return [
        ReceivedSpan(
            id=span.span_id.hex(),
            trace_id=span.trace_id.hex(),
            parent_id=span.parent_span_id.hex() or None,
            name=span.name,
            start_ns=span.start_time_unix_nano,
            end_ns=span.end_time_unix_nano,
            failed=span.status.code == span.status.STATUS_CODE_ERROR,
            attributes=_values(span.attributes),
            resource=_values(group.resource.attributes),
        )
        for group in request.resource_spans
        for scope in group.scope_spans
        for span in scope.spans
    ]


def _values(attributes: Any) -> dict[str, Any]:
    pairs: list[KeyValue] = list(attributes)
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    return getattr(value, kind) if kind else None
