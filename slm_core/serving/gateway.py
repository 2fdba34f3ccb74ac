"""The gateway: one address in front of teacher and adapters, so that traffic can be shifted.

Callers ask for the model ``AGENT/TRACK`` and notice no more of it. By the stage of the route:

    shadow   the answer is the teacher's; the adapter is asked too, later, and compared
    canary   a share of the conversations goes to the adapter; the others as in shadow
    live     every conversation goes to the adapter

Where an adapter fails, is too slow, or answers in another format, the teacher answers in its
place, and the reason is counted. A streamed answer of an adapter comes in one piece, because
it is checked before a word of it leaves. While one adapter is live, the next one's shadow is
compared with it, and its canary takes conversations from it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, NamedTuple

from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse

from slm_core.backends.base import Completion, Request
from slm_core.errors import BadRequest, Overloaded
from slm_core.prompting.parse import parse_output
from slm_core.records import TRACKS, Stage, TrafficOutcome
from slm_core.records.capture import STUDENT_FINGERPRINT
from slm_core.serving import wire_answer
from slm_core.serving.chat import Limits, Pending, Refusal, json_response, read_bytes
from slm_core.serving.engine import Engine
from slm_core.serving.exchange import (
    Exchange,
    Question,
    Record,
    answer_text,
    conversation_of,
    student_exchange,
)
from slm_core.serving.router import Lane, LiveModels
from slm_core.serving.shadow import Shadows, ShadowTask
from slm_core.serving.tally import Tally
from slm_core.serving.upstream import Upstream
from slm_core.serving.wire_request import ChatBody, read_body

CONVERSATION_HEADER = "x-slm-conversation"
"""Names the conversation, all of which is answered by one side; without it, its beginning does."""


class _Readable(NamedTuple):
    """A request that an adapter can be asked."""

    body: ChatBody
    request: Request
    max_tokens: int


class Gateway:
    """Answers each request by whoever's turn it is."""

    def __init__(
        self,
        engine: Engine,
        models: LiveModels,
        upstream: Upstream,
        shadows: Shadows,
        tally: Tally,
        record: Record,
        limits: Limits,
        student_timeout_seconds: float,
    ) -> None:
        self._engine = engine
        self._models = models
        self._upstream = upstream
        self._shadows = shadows
        self._tally = tally
        self._record = record
        self._limits = limits
        self._student_timeout_seconds = student_timeout_seconds

    def find(self, name: str) -> None:
        """Refuse a name that is not of the form AGENT/TRACK."""
        agent, _, track = name.rpartition("/")
        if not agent or track not in TRACKS:
            raise Refusal(
                404,
                f"The model {name!r} does not exist. Ask for AGENT/TRACK, where TRACK is "
                f"{' or '.join(TRACKS)}; whoever's turn it is then answers.",
                code="model_not_found",
                param="model",
            )

    async def complete(self, http: HttpRequest, deployment: str | None) -> Response:
        """Answer one chat request; ``deployment`` is the model's name in Azure's form."""
        raw = await read_bytes(http, self._limits)
        wire = _object(raw)
        name = deployment if deployment is not None else str(wire.get("model", ""))
        self.find(name)
        question = _question(name, wire, http.headers.get(CONVERSATION_HEADER))
        readable = self._readable(raw)
        lane = self._turn(question)
        if lane is not None:
            completion = await self._ask_student(http, lane, question, readable)
            if completion is not None and readable is not None:
                return self._answer(lane, question, readable, completion)
        began = time.monotonic()

        def answered(completion: Mapping[str, Any]) -> None:
            self._teacher_answered(question, readable, completion, time.monotonic() - began, lane)

        return await self._upstream.ask(wire, answered)

    def _turn(self, question: Question) -> Lane | None:
        """Return whose turn it is; None when it is the teacher's."""
        canary = self._models.lane(question.name, Stage.CANARY)
        if canary is not None and question.place() < (canary.route.share or 0.0):
            return canary
        return self._models.lane(question.name, Stage.LIVE)

    async def _ask_student(
        self, http: HttpRequest, lane: Lane, question: Question, readable: _Readable | None
    ) -> Completion | None:
        """Return an answer that may go out; None, counted with its reason, when there is none."""
        outcome: TrafficOutcome
        completion: Completion | None = None
        if readable is None:
            outcome = TrafficOutcome.UNSUPPORTED
        elif not self._engine.health().ready:
            outcome = TrafficOutcome.BUSY  # its processes are being replaced
        else:
            try:
                completion = await self._run(http, lane, readable)
            except Overloaded:
                outcome = TrafficOutcome.BUSY
            except Refusal as refusal:
                if refusal.status == 499:
                    raise  # the caller has left; nobody failed
                outcome = _OUTCOMES.get(refusal.code or "", TrafficOutcome.ERROR)
            else:
                said = parse_output(
                    completion.text, question.track, finish_reason=completion.finish_reason
                )
                outcome = TrafficOutcome.ANSWERED if said.parsed else TrafficOutcome.FORMAT
        self._tally.count(lane.route, "answer", outcome)
        return completion if outcome is TrafficOutcome.ANSWERED else None

    async def _run(self, http: HttpRequest, lane: Lane, readable: _Readable) -> Completion:
        self._shadows.make_room()
        pending = Pending(asyncio.get_running_loop(), self._student_timeout_seconds)
        pending.job = self._engine.submit(
            lane.source,
            readable.request,
            max_tokens=readable.max_tokens,
            stop=readable.body.stops,
            on_event=pending.receive,
        )
        try:
            completion = await pending.next(http)
        except BaseException:
            pending.job.cancel()
            raise
        assert isinstance(completion, Completion)
        return completion

    def _answer(
        self, lane: Lane, question: Question, readable: _Readable, completion: Completion
    ) -> Response:
        tags = {"route": lane.route.stage.value}
        self._record(student_exchange(question, lane.route.adapter_id, completion, tags))
        self._compare(question, readable, completion.text, answered_by=lane)
        body = readable.body
        head = wire_answer.answer_head(question.name, lane.source.fingerprint)
        if not body.stream:
            return json_response(wire_answer.chat_completion(head, completion, body.native))
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        chunks = wire_answer.whole_as_chunks(head, completion, body.native, with_usage)

        async def events() -> AsyncIterator[str]:
            for chunk in chunks:
                yield f"data: {json.dumps(chunk)}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    def _teacher_answered(
        self,
        question: Question,
        readable: _Readable | None,
        completion: Mapping[str, Any],
        seconds: float,
        instead_of: Lane | None,
    ) -> None:
        try:
            choice = completion["choices"][0]
            message = choice["message"]
            usage = completion.get("usage") or {}
            fingerprint = str(completion.get("system_fingerprint") or "")
            exchange = Exchange(
                question,
                str(completion["model"]),
                # Behind one gateway there may be another, or a server of ours.
                "slm" if fingerprint.startswith(STUDENT_FINGERPRINT) else "llm",
                message,
                choice.get("finish_reason"),
                usage.get("prompt_tokens"),
                usage.get("completion_tokens"),
                seconds,
                {"instead_of": instead_of.route.adapter_id} if instead_of else {},
            )
            text = answer_text(message)
        except (AttributeError, IndexError, KeyError, TypeError):
            return  # passed on as it came; there is nothing in it to compare
        self._record(exchange)
        self._compare(question, readable, text, answered_by=instead_of)

    def _compare(
        self,
        question: Question,
        readable: _Readable | None,
        given: str,
        *,
        answered_by: Lane | None,
    ) -> None:
        """Have the other adapters on their way to live asked the same."""
        for stage in (Stage.CANARY, Stage.SHADOW):
            lane = self._models.lane(question.name, stage)
            if lane is None or (answered_by and lane.source == answered_by.source):
                continue
            if readable is None:
                self._tally.count(lane.route, "shadow", TrafficOutcome.UNSUPPORTED)
                continue
            self._shadows.offer(
                ShadowTask(
                    lane,
                    question,
                    readable.request,
                    readable.max_tokens,
                    readable.body.stops,
                    given,
                )
            )

    def _readable(self, raw: bytes) -> _Readable | None:
        """Return the request as an adapter takes it; None when only the teacher can."""
        try:
            body = read_body(raw)
            request = body.request()
        except BadRequest:
            return None
        return _Readable(body, request, body.limit or self._limits.default_max_tokens)


_OUTCOMES = {
    "timeout": TrafficOutcome.TIMEOUT,
    "overloaded": TrafficOutcome.BUSY,
    "context_length_exceeded": TrafficOutcome.UNSUPPORTED,
}


def _object(raw: bytes) -> dict[str, Any]:
    try:
        wire = json.loads(raw)
    except ValueError as error:
        raise Refusal(400, f"The request is not JSON: {error}") from error
    except RecursionError as error:
        raise Refusal(400, "The request is nested too deeply.") from error
    if not isinstance(wire, dict):
        raise Refusal(400, "The request is not a JSON object.")
    return wire


def _question(name: str, wire: Mapping[str, Any], conversation: str | None) -> Question:
    agent, _, track = name.rpartition("/")
    messages = wire.get("messages")
    messages = messages if isinstance(messages, list) else []
    tools = wire.get("tools")
    return Question(
        agent,
        "structured" if track == "structured" else "toolcall",
        conversation or conversation_of(messages),
        messages,
        tools if isinstance(tools, list) else [],
    )
