"""The teacher behind a gateway: requests and answers pass as they are.

Its errors are the caller's to see, so nothing is retried here: the caller's own client does.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import httpx
from starlette.responses import Response, StreamingResponse

from slm_core.serving.chat import Refusal
from slm_core.serving.spec import TeacherSpec

_OPENAI = "https://api.openai.com/v1"
_PASSED_ON = ("content-type", "retry-after", "retry-after-ms", "x-request-id", "x-should-retry")

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
        request = self._client.build_request("POST", self._url, json={**body, "model": self._model})
        try:
            answer = await self._client.send(request, stream=True)
            headers = {n: answer.headers[n] for n in _PASSED_ON if n in answer.headers}
            if body.get("stream") and answer.status_code == 200:
                return StreamingResponse(_passed_on(answer, on_answer), headers=headers)
            content = await answer.aread()
        except httpx.TimeoutException as error:
            raise _gone("does not answer in time", "timeout") from error
        except httpx.HTTPError as error:
            raise _gone(f"cannot be reached ({type(error).__name__})", "unavailable") from error
        await answer.aclose()
        if answer.status_code == 200 and (completion := _object(content)) is not None:
            on_answer(completion)
        return Response(content, answer.status_code, headers)


def _gone(what: str, code: str) -> Refusal:
    return Refusal(503, f"The teacher {what}.", kind="server_error", code=code)


async def _passed_on(answer: httpx.Response, on_answer: OnAnswer) -> AsyncIterator[bytes]:
    reader = _StreamReader()
    try:
        async for part in answer.aiter_bytes():
            reader.take(part)
            yield part
    finally:
        await answer.aclose()
    if (completion := reader.completion()) is not None:
        on_answer(completion)


class _StreamReader:
    """Puts the pieces of a stream together again."""

    def __init__(self) -> None:
        self._rest = b""
        self._head: dict[str, Any] = {}
        self._text: list[str] = []
        self._calls: dict[int, dict[str, str]] = {}
        self._finish_reason: str | None = None
        self._usage: Any = None

    def take(self, part: bytes) -> None:
        *lines, self._rest = (self._rest + part).split(b"\n")
        for line in lines:
            if line.startswith(b"data:") and (chunk := _object(line[5:])) is not None:
                self._add(chunk)

    def completion(self) -> dict[str, Any] | None:
        """Return the whole answer; None when its end never came."""
        if self._finish_reason is None:
            return None
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._text) or None}
        if self._calls:
            message["tool_calls"] = [
                {"type": "function", "function": call} for _, call in sorted(self._calls.items())
            ]
        choice = {"message": message, "finish_reason": self._finish_reason}
        return {**self._head, "choices": [choice], "usage": self._usage}

    def _add(self, chunk: dict[str, Any]) -> None:
        self._head = self._head or {"model": chunk.get("model")}
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            self._text.append(delta.get("content") or "")
            for piece in delta.get("tool_calls") or ():
                call = self._calls.setdefault(piece.get("index", 0), {"name": "", "arguments": ""})
                function = piece.get("function") or {}
                call["name"] += function.get("name") or ""
                call["arguments"] += function.get("arguments") or ""
            self._finish_reason = choice.get("finish_reason") or self._finish_reason


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
