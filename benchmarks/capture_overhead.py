"""What capturing one finished call costs the application: ours, Langfuse and plain OpenTelemetry.

    python benchmarks/capture_overhead.py [--rounds 5] [--calls 5000]

Every tracer runs in its own processes, the rounds take turns, and all see the same calls: 64
texts, 500 characters of system prompt, 700 of question, 850 of answer. Both peers send to a
server on this machine that accepts everything. Three modes:

    burst   back to back
    paced   200 calls a second
    busy    paced, with another thread of the process computing without pause

and one more question: how many of 1000 returned calls are left after ``kill -9``. Times are
microseconds in the caller's thread, the median over the rounds; compare within a column only.
Without SLM Swap's own secret search (``ours, no redaction``) the row is like the peers, which
search for nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

MODES = ("burst", "paced", "busy")
PACED_CALLS = 400
PACED_SECONDS = 1 / 200
KILLED_AFTER = 1000
WORDS = (
    "please book a table for two people at seven in Paris and tell me what the weather will be "
    "like there tomorrow morning because we plan to walk along the river before dinner"
).split()


class Turn(NamedTuple):
    """One finished call."""

    system: str
    user: str
    answer: str


class Tracer(NamedTuple):
    """How to capture one call, and how to end in order."""

    capture: Callable[[Turn], object]
    close: Callable[[], object]


def ours(folder: str, address: str, **spec: Any) -> Tracer:
    from slm_core.capture import CaptureSpec, WorkflowTracer

    tracer = WorkflowTracer(CaptureSpec(**spec), spool_dir=folder)

    def capture(turn: Turn) -> None:
        tracer.capture_call(
            agent_type="sub-agent",
            agent_name="booking",
            model_used="gpt-4o",
            system_prompt=turn.system,
            user_query=turn.user,
            assistant_response=turn.answer,
            prompt_tokens=300,
            completion_tokens=200,
            execution_time=1.2,
        )

    return Tracer(capture, tracer.close)


def ours_without_redaction(folder: str, address: str) -> Tracer:
    return ours(folder, address, redact=())


def langfuse(folder: str, address: str) -> Tracer:
    from langfuse import Langfuse

    client = Langfuse(public_key="pk-lf-1", secret_key="sk-lf-1", base_url=address)

    def capture(turn: Turn) -> None:
        client.start_observation(
            name="booking",
            as_type="generation",
            model="gpt-4o",
            input=[
                {"role": "system", "content": turn.system},
                {"role": "user", "content": turn.user},
            ],
            output={"role": "assistant", "content": turn.answer},
            usage_details={"input": 300, "output": 200},
            metadata={"agent_type": "sub-agent"},
        ).end()

    return Tracer(capture, client.shutdown)


def opentelemetry(folder: str, address: str) -> Tracer:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider()
    exporter = OTLPSpanExporter(endpoint=f"{address}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("bench")

    def capture(turn: Turn) -> None:
        with tracer.start_as_current_span("booking") as span:
            span.set_attribute("gen_ai.request.model", "gpt-4o")
            span.set_attribute("gen_ai.system_instructions", turn.system)
            span.set_attribute("gen_ai.input.messages", turn.user)
            span.set_attribute("gen_ai.output.messages", turn.answer)
            span.set_attribute("gen_ai.usage.input_tokens", 300)
            span.set_attribute("gen_ai.usage.output_tokens", 200)

    return Tracer(capture, provider.shutdown)


def nothing(folder: str, address: str) -> Tracer:
    return Tracer(lambda turn: None, lambda: None)


TRACERS: dict[str, Callable[[str, str], Tracer]] = {
    "empty call": nothing,
    "ours": ours,
    "ours, no redaction": ours_without_redaction,
    "OpenTelemetry": opentelemetry,
    "Langfuse": langfuse,
}


def turns() -> list[Turn]:
    """Return 64 different calls, the same ones in every process."""
    chance = random.Random(7)

    def text(length: int) -> str:
        return " ".join(chance.choice(WORDS) for _ in range(length // 3))[:length]

    return [Turn(text(500), text(700), text(850)) for _ in range(64)]


def measure(name: str, mode: str, calls: int, address: str) -> list[float]:
    """Return the seconds of each call; runs in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        tracer, texts = TRACERS[name](folder, address), turns()
        for number in range(200):
            tracer.capture(texts[number % 64])
        stop = threading.Event()
        thread = threading.Thread(target=_compute, args=(stop,), daemon=True)
        if mode == "busy":
            thread.start()
        seconds, begun = [], time.perf_counter()
        for number in range(calls if mode == "burst" else PACED_CALLS):
            if mode != "burst":
                due = begun + number * PACED_SECONDS
                time.sleep(max(0.0, due - time.perf_counter()))
            start = time.perf_counter()
            tracer.capture(texts[number % 64])
            seconds.append(time.perf_counter() - start)
        stop.set()
        tracer.close()
    return seconds


def capture_and_die(name: str, folder: str, address: str) -> None:
    """Capture 1000 calls and be killed; runs in a process of its own."""
    tracer, texts = TRACERS[name](folder, address), turns()
    for number in range(KILLED_AFTER):
        tracer.capture(texts[number % 64])
    os.kill(os.getpid(), signal.SIGKILL)


def _compute(stop: threading.Event) -> None:
    value = 1
    while not stop.is_set():
        value = value * 3 % 1_000_003


class Sink(BaseHTTPRequestHandler):
    """Accepts every export and counts the spans in it."""

    protocol_version = "HTTP/1.1"
    spans = 0

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        Sink.spans += count_spans(body, self.headers.get("Content-Encoding"))
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def count_spans(body: bytes, encoding: str | None) -> int:
    import gzip

    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    request = ExportTraceServiceRequest.FromString(
        gzip.decompress(body) if encoding == "gzip" else body
    )
    return sum(len(s.spans) for r in request.resource_spans for s in r.scope_spans)


def kept_after_kill(name: str, address: str) -> int | None:
    """Return how many of 1000 returned calls can be found after the kill."""
    if name == "empty call":
        return None
    from slm_core.capture import drain_spool
    from slm_core.dataset import why_unusable
    from slm_core.store import open_store

    with tempfile.TemporaryDirectory() as folder:
        before = Sink.spans
        _child("die", name, folder, address)
        time.sleep(0.5)
        with open_store(f"sqlite:///{folder}/slm.db") as store:
            return Sink.spans - before + drain_spool(folder, store, usable=why_unusable).stored


def _child(*arguments: str) -> str:
    command = [sys.executable, __file__, "--child", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode not in (0, -signal.SIGKILL):
        raise SystemExit(done.stderr)
    return done.stdout


def _as_child(arguments: list[str]) -> None:
    if arguments[0] == "die":
        capture_and_die(*arguments[1:])
    name, mode, calls, address = arguments
    seconds = sorted(measure(name, mode, int(calls), address))
    last = len(seconds) - 1
    print(json.dumps([1e6 * seconds[last // 2], 1e6 * seconds[int(last * 0.99)]]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=5000, help="calls of a burst")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return _as_child(options.child)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    found: dict[tuple[str, str], list[list[float]]] = {}
    for _ in range(options.rounds):
        for mode in MODES:
            for name in random.sample(list(TRACERS), len(TRACERS)):
                output = _child(name, mode, str(options.calls), address)
                found.setdefault((name, mode), []).append(json.loads(output))
    columns = [f"{mode} {p}" for mode in MODES for p in ("p50", "p99")]
    print(f"{'microseconds':20}" + "".join(f"{c:>12}" for c in columns) + f"{'after kill':>14}")
    for name in TRACERS:
        medians = [
            statistics.median(round_[column] for round_ in found[name, mode])
            for mode in MODES
            for column in (0, 1)
        ]
        kept = kept_after_kill(name, address)
        left = "" if kept is None else f"{kept} of {KILLED_AFTER}"
        print(f"{name:20}" + "".join(f"{m:12.1f}" for m in medians) + f"{left:>14}")
    server.shutdown()


if __name__ == "__main__":
    main()
