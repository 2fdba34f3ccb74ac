"""A fake provider: a real HTTP server that speaks the OpenAI and Azure wire format.

The last user message of a request says how it is answered: by the text given for it, or see
``WISHES``. What it was sent is kept in ``received``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from slm_core.testing.loopback import LoopbackHandler, LoopbackServer

WISHES = {
    "tool": "one call of the tool `book`, its arguments in two pieces when streamed",
    "broken-arguments": "the same with arguments that are not JSON",
    "student": "text, marked as a student's",
    "nameless": "text, by a model without a name",
    "error": "HTTP 429",
    "break-off": "a stream that ends in an error event after three words",
    "cut": "a stream whose connection ends after three words",
    "odd": "a stream with a chunk whose choices are no list",
}
"""Any other message is answered with ``TEXT``."""
WORDS = tuple(f"word{number} " for number in range(40))
TEXT = "".join(WORDS)
THREE_WORDS = "".join(WORDS[:3])
MODEL = "gpt-4o-2024-08-06"
USAGE = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
ClientKind = Literal["openai", "azure", "async-openai", "async-azure"]


class Received(NamedTuple):
    """One request: its path with the query, and its body."""

    path: str
    body: dict[str, Any]


class FakeProvider(LoopbackServer):
    """The server, as a context manager."""

    def __init__(self, answers: Mapping[str, str] | None = None) -> None:
        """Prepare to answer the messages in ``answers`` with the texts given there."""
        super().__init__(_Handler)
        self.answers = answers or {}
        self.received: list[Received] = []

    def client(self, kind: ClientKind) -> Any:
        """Return a client of the OpenAI library for this server; close it after use."""
        import openai

        plain = {"base_url": f"{self.base_url}/v1", "api_key": "key", "max_retries": 0}
        azure = {
            "azure_endpoint": self.base_url,
            "api_key": "key",
            "api_version": "2024-10-21",
            "max_retries": 0,
        }
        makers: dict[str, tuple[Any, dict[str, Any]]] = {
            "openai": (openai.OpenAI, plain),
            "azure": (openai.AzureOpenAI, azure),
            "async-openai": (openai.AsyncOpenAI, plain),
            "async-azure": (openai.AsyncAzureOpenAI, azure),
        }
        make, options = makers[kind]
        return make(**options)


class _Handler(LoopbackHandler):
    owner: FakeProvider
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        body = json.loads(self.body())
        self.owner.received.append(Received(self.path, body))
        wish = body["messages"][-1]["content"]
        text = self.owner.answers.get(wish, TEXT)
        if wish == "error":
            self._send(429, "application/json", [b'{"error": {"message": "slow down"}}'])
        elif body.get("stream"):
            usage = (body.get("stream_options") or {}).get("include_usage", False)
            events = _events(wish, usage, body.get("n") or 1)
            self._send(200, "text/event-stream", events, length=False)
        else:
            self._send(200, "application/json", [json.dumps(_completion(wish, text)).encode()])

    def _send(self, status: int, kind: str, parts: Iterable[bytes], *, length: bool = True) -> None:
        parts = list(parts)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("x-should-retry", "false")
        if length:
            self.send_header("Content-Length", str(sum(map(len, parts))))
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        try:
            for part in parts:
                self.wfile.write(part)
        except ConnectionError:  # the client left early
            self.close_connection = True


def _calls_tool(wish: str) -> bool:
    return wish in ("tool", "broken-arguments")


def _tool_call(wish: str) -> dict[str, Any]:
    arguments = '{"seats": 2}' if wish == "tool" else '{"seats": 2'
    function = {"name": "book", "arguments": arguments}
    return {"index": 0, "id": "call_1", "type": "function", "function": function}


def _head(wish: str, kind: str) -> dict[str, Any]:
    return {
        "id": "cmpl-1",
        "object": kind,
        "created": 1,
        "model": "" if wish == "nameless" else MODEL,
        "system_fingerprint": "slm-adapter-1" if wish == "student" else "fp_1",
    }


def _completion(wish: str, text: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if _calls_tool(wish):
        message |= {"content": None, "tool_calls": [_tool_call(wish)]}
    choice = {"index": 0, "message": message, "finish_reason": _finish(wish)}
    return {**_head(wish, "chat.completion"), "choices": [choice], "usage": USAGE}


def _finish(wish: str) -> str:
    return "tool_calls" if _calls_tool(wish) else "stop"


def _events(wish: str, usage: bool, n: int) -> Iterator[bytes]:
    # Azure begins with the verdict of its content filter, in a chunk without choices or model.
    yield _event(wish, [], prompt_filter_results=[], model="")
    for delta in _deltas(wish):
        for index in range(n):
            yield _event(wish, [{"index": index, "delta": delta, "finish_reason": None}])
    if wish == "odd":
        yield b'data: {"choices": 5}\n\n'
    if wish == "break-off":
        yield b'data: {"error": {"message": "the model fell over"}}\n\n'
    if wish in ("break-off", "cut"):
        return
    yield _event(wish, [{"index": 0, "delta": {}, "finish_reason": _finish(wish)}])
    if usage:
        yield _event(wish, [], usage=USAGE)
    yield b"data: [DONE]\n\n"


def _deltas(wish: str) -> Iterator[dict[str, Any]]:
    if _calls_tool(wish):
        whole = _tool_call(wish)
        arguments = whole["function"]["arguments"]
        yield {"tool_calls": [{**whole, "function": {"name": "book", "arguments": ""}}]}
        for piece in (arguments[:5], arguments[5:]):
            yield {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}
        return
    yield {"role": "assistant", "content": ""}
    for word in WORDS[:3] if wish in ("break-off", "cut") else WORDS:
        yield {"content": word}


def _event(wish: str, choices: list[Any], **more: Any) -> bytes:
    chunk = {**_head(wish, "chat.completion.chunk"), "choices": choices, **more}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"
