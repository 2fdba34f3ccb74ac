"""Answers one chat request: from the body that came to the answer, whole or as a stream."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple, Protocol

from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse

from slm_core.backends.base import Completion
from slm_core.errors import (
    BadRequest,
    ModelError,
    Overloaded,
    PromptMismatch,
    PromptTooLong,
    SlmError,
)
from slm_core.serving import wire_answer
from slm_core.serving.engine import Engine
from slm_core.serving.keeper import Job
from slm_core.serving.messages import Delta, Done, Event, Failed, ModelSource
from slm_core.serving.wire_request import read_body

_LOOK_SECONDS = 0.5
"""How often a caller who waits for a whole answer is looked after."""


class Models(Protocol):
    """The models that a server gives out."""

    def names(self) -> Sequence[str]:
        """Return their names, in order."""
        ...

    def find(self, name: str) -> ModelSource | None:
        """Return the model of that name, or None."""
        ...


class Limits(NamedTuple):
    """What a caller may ask for."""

    max_body_bytes: int
    default_max_tokens: int
    timeout_seconds: float


class Refusal(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.status = status
        self.code: str | None = fields.get("code")
        self.headers = {"retry-after": "1"} if status == 503 else {}
        self.body = wire_answer.error_body(message, **fields)


class Chat:
    """Takes chat requests to the engine."""

    def __init__(self, engine: Engine, models: Models, limits: Limits) -> None:
        self._engine = engine
        self._models = models
        self._limits = limits

    def find(self, name: str) -> ModelSource:
        """Return the model of that name, or refuse with 404."""
        source = self._models.find(name)
        if source is None:
            raise Refusal(
                404,
                f"The model {name!r} does not exist. This server has: "
                f"{', '.join(self._models.names()) or 'none'}.",
                code="model_not_found",
                param="model",
            )
        return source

    async def complete(self, http: HttpRequest, deployment: str | None) -> Response:
        """Answer one chat request; ``deployment`` is the model's name in Azure's form."""
        try:
            body = read_body(await read_bytes(http, self._limits))
            request = body.request()
        except BadRequest as error:
            raise Refusal(400, error.message, **error.context) from error
        name = body.model if deployment is None else deployment
        source = self.find(name)
        answer = Pending(asyncio.get_running_loop(), self._limits.timeout_seconds)
        try:
            answer.job = self._engine.submit(
                source,
                request,
                max_tokens=body.limit or self._limits.default_max_tokens,
                stop=body.stops,
                stream=bool(body.stream),
                on_event=answer.receive,
            )
        except Overloaded as error:
            raise _refusal(error) from error
        head = wire_answer.answer_head(name, source.fingerprint)
        try:
            first = await answer.next(http)
        except BaseException:
            answer.job.cancel()
            raise
        if body.stream:
            with_usage = body.stream_options is not None and body.stream_options.include_usage
            events = _chunks(head, first, answer, body.native, with_usage)
            return StreamingResponse(_sse(events, answer), media_type="text/event-stream")
        assert isinstance(first, Completion)
        return json_response(wire_answer.chat_completion(head, first, body.native))


async def read_bytes(http: HttpRequest, limits: Limits) -> bytes:
    """Return the body of a request, or refuse one that is too large."""
    data = bytearray()
    async for part in http.stream():
        data += part
        if len(data) > limits.max_body_bytes:
            raise Refusal(413, f"The request is larger than {limits.max_body_bytes} bytes.")
    return bytes(data)


class Pending:
    """What the engine says about one request, taken from its thread into the event loop."""

    job: Job

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout_seconds: float) -> None:
        self._loop = loop
        self._timeout_seconds = timeout_seconds
        self._deadline = loop.time() + timeout_seconds
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def receive(self, event: Event) -> None:
        """Take an event; called in the engine's thread."""
        # A loop that has closed has nobody left to tell.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def next(self, http: HttpRequest | None = None) -> str | Completion:
        """Return the next piece of text, or the whole answer at its end.

        With ``http``, a caller who hangs up while waiting ends it.

        Raises:
            Refusal: there will be no answer.
        """
        while True:
            left = self._deadline - self._loop.time()
            if left <= 0:
                raise Refusal(
                    503,
                    f"No answer within {self._timeout_seconds:g} seconds; try again later.",
                    kind="server_error",
                    code="timeout",
                )
            try:
                event = await asyncio.wait_for(self._events.get(), min(left, _LOOK_SECONDS))
            except TimeoutError:
                if http is not None and await http.is_disconnected():
                    raise Refusal(499, "The caller has hung up.") from None
                continue
            match event:
                case Delta(text):
                    return text
                case Failed(error):
                    raise _refusal(error) from error
                case Done(completion):
                    assert completion is not None
                    return completion


async def _chunks(
    head: dict[str, Any],
    first: str | Completion,
    answer: Pending,
    native: bool,
    with_usage: bool,
) -> AsyncIterator[dict[str, Any]]:
    """Yield a streamed answer; text that may become a tool call is held until that is known."""
    yield wire_answer.chunk(head, {"role": "assistant", "content": ""})
    held = ""
    holding = native
    piece = first
    while isinstance(piece, str):
        held += piece
        holding = holding and wire_answer.may_become_call(held)
        if held and not holding:
            yield wire_answer.chunk(head, {"content": held})
            held = ""
        piece = await answer.next()
    message, reason = wire_answer.answer_message(piece, native)
    if calls := message.get("tool_calls"):
        yield wire_answer.chunk(head, wire_answer.calls_delta(calls))
    elif held:
        yield wire_answer.chunk(head, {"content": held})
    yield wire_answer.chunk(head, {}, reason)
    if with_usage:
        yield wire_answer.usage_chunk(head, piece)


async def _sse(events: AsyncIterator[dict[str, Any]], answer: Pending) -> AsyncIterator[str]:
    """Write events as a stream; a caller who leaves frees the worker."""
    try:
        async for event in events:
            yield f"data: {json.dumps(event)}\n\n"
        yield "data: [DONE]\n\n"
    except Refusal as refusal:
        yield f"data: {json.dumps(refusal.body)}\n\n"
    finally:
        answer.job.cancel()


def _refusal(error: SlmError) -> Refusal:
    """Return how an error of ours is told over HTTP."""
    if isinstance(error, PromptTooLong):
        return Refusal(400, str(error), code="context_length_exceeded", param="messages")
    code = "overloaded" if isinstance(error, Overloaded) else "unavailable"
    if isinstance(error, ModelError | PromptMismatch):
        code = "model_cannot_be_served"
    return Refusal(503, str(error), kind="server_error", code=code)


def json_response(
    body: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    # ASCII: model output may hold lone surrogates, which UTF-8 cannot say.
    return Response(json.dumps(body), status, headers, "application/json")
