"""Captures LLM calls in the application's own threads and processes.

    tracer = WorkflowTracer()
    client = tracer.wrap(OpenAI(), agent_type="sub-agent", agent_name="booking")
    with tracer.conversation("session-17", tags={"domain": "travel"}):
        client.chat.completions.create(model="gpt-4o", messages=[...])

A call is in the spool, out of reach of ``kill -9``, before ``capture_call`` returns. The
application never waits for a disk, a database or a network, and never sees an error of ours
unless the spec says ``strict``; ``health()`` shows everything that was not captured, and why.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, TypeVar
from zlib import crc32

from slm_core.capture.client import attach
from slm_core.capture.encoding import encode
from slm_core.capture.hermes import TrainingFile, write_hermes
from slm_core.capture.prices import PriceTable
from slm_core.capture.recording import Agent, Recording
from slm_core.capture.redact import Redactor
from slm_core.capture.scope import current_scope, enter_scope
from slm_core.capture.spec import CaptureSpec
from slm_core.capture.spool import NotStored, Spool
from slm_core.capture.wire import read_answer, read_content, read_messages, read_tools
from slm_core.errors import CaptureError
from slm_core.records import TRACKS, Call, Track

log = logging.getLogger(__name__)

_SAMPLED_OUT = "sampled out"
_UNREADABLE = "not a call that can be stored"

Client = TypeVar("Client")


class Health(NamedTuple):
    """What became of the calls of this process."""

    captured: int
    """Calls handed to the tracer: ``written``, ``sampled_out`` and ``dropped`` together."""
    written: int
    sampled_out: int
    dropped: dict[str, int]
    """Reason to count."""
    errors: int
    """Failures inside the tracer; each is in the log."""


class WorkflowTracer:
    """Captures calls into a spool folder. One per process is enough; threads share it."""

    def __init__(
        self,
        spec: CaptureSpec | None = None,
        *,
        spool_dir: Path | str | None = None,
        database_url: str | None = None,
    ) -> None:
        """Prepare capture; no file is made before the first call.

        ``spool_dir`` is ``.slm/spool`` by default, ``database_url`` the SQLite file ``slm.db``
        beside it; only ``generate_training_dataset`` opens the database.
        """
        self.spec = spec or CaptureSpec()
        self.spool_dir = Path(spool_dir or ".slm/spool").absolute()
        self.database_url = database_url or f"sqlite:///{self.spool_dir.parent / 'slm.db'}"
        self.errors = 0
        self._spool = Spool(
            self.spool_dir,
            segment_bytes=self.spec.segment_bytes,
            spool_bytes=self.spec.spool_bytes,
            on_full=self.spec.on_full,
            block_seconds=self.spec.block_seconds,
        )
        self._redactor = Redactor(self.spec.redact, self.spec.redact_patterns)
        self._prices = PriceTable(self.spec.prices)
        self._logged: set[str] = set()
        self.open_recordings: set[Recording] = set()
        _TRACERS.add(self)

    def capture_call(
        self,
        *,
        agent_type: str,
        agent_name: str,
        model_used: str,
        system_prompt: str | None = None,
        user_query: str | None = None,
        assistant_response: str | None = None,
        success: bool = True,
        messages: Sequence[Any] | None = None,
        tools: Iterable[Any] = (),
        tool_calls: Iterable[Any] = (),
        track: Track | None = None,
        conversation_id: str | None = None,
        finish_reason: str | None = None,
        complete: bool = True,
        source: Literal["llm", "slm"] = "llm",
        error: str | None = None,
        prompt_tokens: int | None = None,
        completion_tokens: int | None = None,
        cost_usd: float | None = None,
        execution_time: float = 0.0,
        tags: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> str:
        """Capture one call and return its id, or ``""`` if it was not kept.

        The question is ``system_prompt``, then ``messages`` (turns in the OpenAI form, or
        records), then ``user_query``; whichever are given. ``tools`` and ``tool_calls`` are
        read in the OpenAI form or as records. ``execution_time`` is in seconds. Without
        ``cost_usd`` the price table is asked; a cost or time that is not a finite number is
        unknown. The conversation is ``conversation_id``, else that of the enclosing
        ``conversation()``, else the call is a conversation of its own.

        Raises:
            CaptureError: the call could not be captured, and the spec is ``strict`` or says
                ``on_full="raise"``.
        """
        try:
            question = read_messages(messages) if messages else []
            if system_prompt is not None:
                question.insert(0, {"role": "system", "content": read_content(system_prompt)})
            if user_query is not None:
                question.append({"role": "user", "content": read_content(user_query)})
            texts: dict[str, Any] = {"messages": question}
            if assistant_response is not None:
                texts["response"] = read_content(assistant_response)
            if tool_calls:
                texts["response"], texts["tool_calls"] = read_answer(assistant_response, tool_calls)
            if tools:
                texts["tools"] = read_tools(tools)
            if error is not None:
                texts["error"] = error
            scope = current_scope()
            all_tags = {**scope.tags, **(tags or {})}
        except Exception as problem:
            return self.refuse(problem)
        facts = {
            "agent_type": agent_type,
            "agent_name": agent_name,
            "model": model_used,
            "conversation_id": conversation_id or scope.conversation_id,
            "track": track,
            "finish_reason": finish_reason,
            "success": success,
            "complete": complete,
            "source": source,
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "seconds": execution_time,
            "idempotency_key": idempotency_key,
        }
        return self.put(facts, texts, all_tags, cost_usd)

    def wrap(
        self,
        client: Client,
        *,
        agent_type: str,
        agent_name: str,
        track: Track | None = None,
        conversation_id: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Client:
        """Return a client like ``client`` whose chat completions are captured.

        Works with ``OpenAI``, ``AzureOpenAI`` and their async forms. The result is a client of
        the same class that shares the connections of ``client``, which stays as it was; wrap
        one client several times to tell agents apart. Captured are all ways to
        ``/chat/completions``: ``create`` with and without ``stream=True``, ``parse``,
        ``stream``, and all of them behind ``with_options``, ``with_raw_response`` and
        ``with_streaming_response``. Other endpoints pass through, uncaptured.

        A stream gives exactly one call, when it ends, is closed or left, or dies; if its
        finish reason was not seen, the call is marked incomplete. The conversation and tags of
        single requests are set by ``with tracer.conversation(...)``, which goes before
        ``conversation_id`` and ``tags`` here. Of several choices the first is captured.

        Raises:
            CaptureError: ``client`` is not such a client, so nothing would be captured.
        """
        agent = Agent(agent_type, agent_name, track, conversation_id, dict(tags or {}))

        def begin(request: Mapping[str, Any]) -> Recording | None:
            try:
                return Recording(self, agent, request)
            except Exception as problem:
                self.refuse(problem)
                return None

        return attach(client, begin, ask_usage=self.spec.stream_usage)

    @contextlib.contextmanager
    def conversation(
        self, conversation_id: str | None = None, *, tags: Mapping[str, str] | None = None
    ) -> Iterator[str]:
        """Give the calls inside the block one conversation; yield its id.

        Holds for this thread and for the asyncio tasks started inside. An inner block has its
        own id and adds its tags to those of the outer one. Without ``conversation_id`` a new
        one is made.
        """
        conversation_id = conversation_id or self._spool.new_id()
        with enter_scope(conversation_id, tags or {}):
            yield conversation_id

    def generate_training_dataset(
        self,
        out_dir: Path | str,
        *,
        usable: Callable[[Call], str | None],
        agent_name: str | None = None,
    ) -> TrainingFile:
        """Write the usable calls captured so far as Hermes-format JSONL; say what was left out.

        Drains the spool into the store first, so that the calls of every process count.
        ``usable`` is as in ``drain_spool``: ``slm_core.dataset.why_unusable``. The file is plain
        data for any trainer. The frozen dataset with splits, on which SLM Swap itself trains,
        is made from the same calls by the dataset stage.

        Raises:
            StoreError: the database cannot be used.
        """
        from slm_core.capture.drain import drain_spool
        from slm_core.store import open_store

        self.flush()
        with open_store(self.database_url) as store:
            drain_spool(self.spool_dir, store, usable=usable)
            calls = store.calls.select(agent_name=agent_name)
            return write_hermes(calls, Path(out_dir), usable)

    def flush(self) -> None:
        """Return once every captured call is on the disk; they outlive a power cut then too."""
        self._spool.sync()

    def health(self) -> Health:
        """Return what became of the calls of this process so far."""
        dropped = dict(self._spool.dropped)
        written, sampled_out = self._spool.written, dropped.pop(_SAMPLED_OUT, 0)
        captured = written + sampled_out + sum(dropped.values())
        return Health(captured, written, sampled_out, dropped, self.errors)

    def close(self) -> None:
        """Record the streams still open and hand the spool file over; happens at exit too."""
        for recording in list(self.open_recordings):
            recording.finish()
        self._spool.close()

    @property
    def generation(self) -> str:
        """Differs in every process, forked ones too."""
        return self._spool.generation

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def put(
        self,
        facts: dict[str, Any],
        texts: dict[str, Any],
        tags: Mapping[str, str],
        cost_usd: float | None = None,
    ) -> str:
        """Stamp, sample, encode and store one call; return its id, or "" if it was not kept."""
        try:
            _check(facts)
            call_id = facts["id"] = self._spool.new_id()
            now = facts["created_at"] = datetime.now(UTC)
            conversation_id = facts["conversation_id"] = facts["conversation_id"] or call_id
            if self.spec.sample_rate < 1 and not self._in_sample(conversation_id):
                self._spool.drop(_SAMPLED_OUT)
                return ""
            if cost_usd is None:
                facts["cost_nanousd"] = self._prices.nanousd(
                    facts["model"], facts["prompt_tokens"], facts["completion_tokens"], now.date()
                )
            elif math.isfinite(cost_usd):
                facts["cost_nanousd"] = round(cost_usd * 1e9)
            if not math.isfinite(facts["seconds"]):
                facts["seconds"] = 0.0
            if tags:
                texts["tags"] = {str(key): str(value) for key, value in tags.items()}
            self._spool.put(encode(facts, texts, self._redactor))
        except Exception as problem:
            return self.refuse(problem)
        return call_id

    def _in_sample(self, conversation_id: str) -> bool:
        digest = crc32(conversation_id.encode("utf-8", "surrogatepass"))
        return digest < self.spec.sample_rate * 2**32

    def refuse(self, problem: Exception) -> str:
        """Account for a call that was not captured; raise only where the spec says so."""
        if isinstance(problem, CaptureError):  # on_full="raise"; the spool has counted it
            raise problem
        if isinstance(problem, NotStored):
            message = f"A call was not captured: {problem.reason}."
        else:
            self.errors += 1
            self._spool.drop(_UNREADABLE)
            kind = type(problem).__name__
            message = f"A call was not captured: {kind}: {problem}"
            if kind not in self._logged:  # the first of a kind says enough; all are counted
                self._logged.add(kind)
                log.error("call not captured error=%s; health() counts the others", kind)
        if self.spec.strict:
            raise CaptureError(message) from problem
        return ""


def _check(facts: dict[str, Any]) -> None:
    """Refuse here what the drainer could not read as a call."""
    for name in ("agent_type", "agent_name", "model"):
        if not isinstance(facts[name], str):
            raise ValueError(f"{name} must be text, not {type(facts[name]).__name__}")
    if facts["track"] is not None and facts["track"] not in TRACKS:
        raise ValueError(f"track must be one of {TRACKS} or None, not {facts['track']!r}")
    if facts["source"] not in ("llm", "slm"):
        raise ValueError(f"source must be 'llm' or 'slm', not {facts['source']!r}")


_TRACERS: weakref.WeakSet[WorkflowTracer] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for tracer in list(_TRACERS):
        tracer.close()
