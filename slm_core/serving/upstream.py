"""The teacher behind a gateway: requests and answers pass as they are.

Its errors are the caller's to see, so nothing is retried here: the caller's own client does.
"""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import httpx
from starlette.responses import Response, StreamingResponse

from slm_core.serving.chat import Refusal
from slm_core.serving.spec import TeacherSpec

_OPENAI = "https://api.openai.com/v1"
_PASSED_ON = ("content-type", "retry-after", "retry-after-ms", "x-request-id", "x-should-retry")
_HEAD = ("model", "system_fingerprint")
"""What every chunk repeats."""

OnAnswer = Callable[[Mapping[str, Any]], None]
"""Gets a chat completion once it has been passed on; never an error, or half a stream."""


class Upstream:
    """One hosted model."""

    def __init__(self, spec: TeacherSpec, timeout_seconds: float) -> None:
        key = spec.api_key.get_secret_value()
        self._model = spec.model
        if spec.kind == "azure":
            base = spec.endpoint.rstrip("/")
            self._url = f"{base}/openai/deployments/{spec.model}/chat/completions"
            headers, query = {"api-key": key}, {"api-version": spec.api_version}
        else:
            self._url = f"{(spec.endpoint or _OPENAI).rstrip('/')}/chat/completions"
            headers, query = {"authorization": f"Bearer {key}"}, {}
        self._client = httpx.AsyncClient(
            headers=headers,
            params=query,
            timeout=timeout_seconds,
            limits=httpx.Limits(max_connections=None),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def ask(self, body: Mapping[str, Any], on_answer: OnAnswer) -> Response:
        """Return the teacher's answer as it comes, streamed if the caller asked for that.

        Raises:
            Refusal: it cannot be reached, or does not answer in time.
        """
        try:
            # ASCII: a body may hold lone surrogates, which UTF-8 cannot say.
            content = json.dumps({**body, "model": self._model}).encode("ascii")
        except RecursionError as error:
            raise Refusal(400, "The request is nested too deeply.") from error
        request = self._client.build_request(
            "POST", self._url, content=content, headers={"content-type": "application/json"}
        )
        try:
            answer = await self._client.send(request, stream=True)
            headers = {n: answer.headers[n] for n in _PASSED_ON if n in answer.headers}
            if body.get("stream") and answer.status_code == 200:
                return StreamingResponse(self._passed_on(answer, on_answer), headers=headers)
            content = await answer.aread()
        except httpx.TimeoutException as error:
            raise _gone("does not answer in time", "timeout") from error
        except httpx.HTTPError as error:
            raise _gone(f"cannot be reached ({type(error).__name__})", "unavailable") from error
        await answer.aclose()
        if answer.status_code == 200 and (completion := _object(content)) is not None:
            on_answer(self._named(completion))
        return Response(content, answer.status_code, headers)

    async def _passed_on(self, answer: httpx.Response, on_answer: OnAnswer) -> AsyncIterator[bytes]:
        reader = StreamReader()
        try:
            async for part in answer.aiter_bytes():
                yield part
                reader.take(part)
        finally:
            await answer.aclose()
        if (completion := reader.completion()) is not None:
            on_answer(self._named(completion))

    def _named(self, completion: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a completion that names its model: the configured one where it names none."""
        return {**completion, "model": completion.get("model") or self._model}


def _gone(what: str, code: str) -> Refusal:
    return Refusal(503, f"The teacher {what}.", kind="server_error", code=code)


class StreamReader:
    """Puts the pieces of a stream together again: its first choice, as in a whole answer.

    It never raises. A stream with a chunk of another shape has no completion.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._odd = False
        self._head: dict[str, Any] = {}
        self._text = io.StringIO()
        self._calls: dict[int, dict[str, str]] = {}
        self._finish_reason: str | None = None
        self._usage: Any = None

    def take(self, part: bytes) -> None:
        """Add the next bytes, wherever they begin and end."""
        if self._odd:
            return
        *lines, self._rest = (self._rest + part).split(b"\n")
        try:
            for line in lines:
                if line.startswith(b"data:") and (chunk := _object(line[5:])) is not None:
                    self._add(chunk)
        except (AttributeError, TypeError, ValueError):
            self._odd = True

    def completion(self) -> dict[str, Any] | None:
        """Return the whole answer; None when its end never came, or it cannot be read."""
        if self._finish_reason is None or self._odd:
            return None
        message: dict[str, Any] = {"role": "assistant", "content": self._text.getvalue() or None}
        if self._calls:
            message["tool_calls"] = [
                {"type": "function", "function": call} for _, call in sorted(self._calls.items())
            ]
        choice = {"message": message, "finish_reason": self._finish_reason}
        return {**self._head, "choices": [choice], "usage": self._usage}

    def _add(self, chunk: dict[str, Any]) -> None:
        # Azure's first chunk is about its filter, and names no model.
        self._head |= {name: chunk[name] for name in _HEAD if chunk.get(name)}
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk.get("choices") or ():
            if choice.get("index", 0) != 0:
                continue
            delta = choice.get("delta") or {}
            self._text.write(delta.get("content") or "")
            for piece in delta.get("tool_calls") or ():
                index = int(piece.get("index") or 0)
                call = self._calls.setdefault(index, {"name": "", "arguments": ""})
                function = piece.get("function") or {}
                call["name"] += function.get("name") or ""
                call["arguments"] += function.get("arguments") or ""
            self._finish_reason = choice.get("finish_reason") or self._finish_reason


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
