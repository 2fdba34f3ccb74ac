"""A wrapped OpenAI client, in all four forms, against a real server that speaks its wire format."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion

from slm_core.capture import CaptureSpec, WorkflowTracer
from slm_core.capture.encoding import decode
from slm_core.capture.segment import read_frames
from slm_core.errors import CaptureError
from slm_core.records import Call, Message, ToolUse

pytestmark = pytest.mark.integration

WORDS = [f"word{i} " for i in range(40)]
TEXT = "".join(WORDS)
TOOL = {
    "type": "function",
    "function": {
        "name": "book",
        "description": "Books a table.",
        "parameters": {"type": "object", "properties": {"seats": {"type": "integer"}}},
    },
}
TOOLS = {"tool", "broken-arguments"}
USAGE = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}


class Provider(BaseHTTPRequestHandler):
    """Answers as the last user message says; keeps the bodies it was sent."""

    protocol_version = "HTTP/1.1"
    received: list[tuple[str, dict[str, Any]]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).received.append((self.path, body))
        wish = body["messages"][-1]["content"]
        if wish == "error":
            self._send(429, "application/json", [b'{"error": {"message": "slow down"}}'])
        elif body.get("stream"):
            usage = (body.get("stream_options") or {}).get("include_usage", False)
            self._send(200, "text/event-stream", _events(wish, usage), close=True)
        else:
            self._send(200, "application/json", [json.dumps(_completion(wish)).encode()])

    def _send(self, status: int, kind: str, parts: Any, *, close: bool = False) -> None:
        parts = list(parts)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("x-should-retry", "false")
        if close:
            self.send_header("Connection", "close")
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(sum(map(len, parts))))
        self.end_headers()
        try:
            for part in parts:
                self.wfile.write(part)
                self.wfile.flush()
        except ConnectionError:
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


def _tool_calls(wish: str) -> list[dict[str, Any]]:
    arguments = '{"seats": 2}' if wish == "tool" else '{"seats": 2'
    function = {"name": "book", "arguments": arguments}
    return [{"index": 0, "id": "call_1", "type": "function", "function": function}]


def _completion(wish: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": TEXT}
    if wish in TOOLS:
        message |= {"content": None, "tool_calls": _tool_calls(wish)}
    finish = "tool_calls" if wish in TOOLS else "stop"
    return {
        "id": "cmpl-1",
        "system_fingerprint": "slm-adapter-1" if wish == "student" else "fp_1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4o-2024-08-06",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": USAGE,
    }


def _events(wish: str, usage: bool) -> Iterator[bytes]:
    def event(delta: dict[str, Any] | None, finish: str | None = None, **more: Any) -> bytes:
        choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
        base = {"id": "c", "object": "chat.completion.chunk", "created": 1}
        if wish == "student":
            base["system_fingerprint"] = "slm-adapter-1"
        chunk = {**base, "model": "gpt-4o-2024-08-06", "choices": choices, **more}
        return b"data: " + json.dumps(chunk).encode() + b"\n\n"

    # Azure begins with the verdict of its content filter, in a chunk without choices.
    yield event(None, prompt_filter_results=[])
    if wish in TOOLS:
        whole = _tool_calls(wish)[0]
        arguments = whole["function"]["arguments"]
        yield event({"tool_calls": [{**whole, "function": {"name": "book", "arguments": ""}}]})
        for piece in (arguments[:5], arguments[5:]):
            yield event({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})
    else:
        yield event({"role": "assistant", "content": ""})
        for number, word in enumerate(WORDS):
            if wish == "break-off" and number == 3:
                yield b'data: {"error": {"message": "the model fell over"}}\n\n'
                return
            if wish == "cut" and number == 3:
                return
            yield event({"content": word})
    yield event({}, "tool_calls" if wish in TOOLS else "stop")
    if usage:
        yield event(None, usage=USAGE)
    yield b"data: [DONE]\n\n"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    Provider.received = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def tracer(tmp_path: Path) -> Iterator[WorkflowTracer]:
    with WorkflowTracer(CaptureSpec(strict=True), spool_dir=tmp_path / "spool") as tracer:
        yield tracer


def captured(tracer: WorkflowTracer) -> list[Call]:
    """Return what the spool holds, in order."""
    segments = sorted(tracer.spool_dir.glob("*.seg"))
    return [decode(f.body) for path in segments for f in read_frames(path, 0, finished=False)]


def openai_client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="k", max_retries=0)


def azure_client(address: str) -> openai.AzureOpenAI:
    return openai.AzureOpenAI(
        azure_endpoint=address, api_key="k", api_version="2024-10-21", max_retries=0
    )


def async_openai_client(address: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="k", max_retries=0)


def async_azure_client(address: str) -> openai.AsyncAzureOpenAI:
    return openai.AsyncAzureOpenAI(
        azure_endpoint=address, api_key="k", api_version="2024-10-21", max_retries=0
    )


SYNC = pytest.mark.parametrize("make", [openai_client, azure_client])
ASYNC = pytest.mark.parametrize("make", [async_openai_client, async_azure_client])
Make = Callable[[str], Any]


def wrapped(tracer: WorkflowTracer, client: Any, **options: Any) -> Any:
    return tracer.wrap(client, agent_type="sub-agent", agent_name="booking", **options)


def ask(wish: str = "hello", **more: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": wish}]
    return {"model": "gpt-4o", "messages": messages, **more}


@contextlib.asynccontextmanager
async def async_wrapped(tracer: WorkflowTracer, make: Make, address: str) -> AsyncIterator[Any]:
    async with make(address) as client:
        yield wrapped(tracer, client)


@SYNC
def test_answer_is_captured(make: Make, address: str, tracer: WorkflowTracer) -> None:
    with make(address) as plain:
        answer = wrapped(tracer, plain).chat.completions.create(**ask())
    (call,) = captured(tracer)
    assert isinstance(answer, ChatCompletion)
    assert answer.choices[0].message.content == TEXT
    assert call.response == TEXT
    assert call.messages == (
        Message(role="system", content="be brief"),
        Message(role="user", content="hello"),
    )
    assert (call.agent_type, call.agent_name) == ("sub-agent", "booking")
    assert call.model == "gpt-4o-2024-08-06"
    assert (call.success, call.complete, call.finish_reason) == (True, True, "stop")
    assert (call.prompt_tokens, call.completion_tokens) == (1000, 100)
    assert call.cost_nanousd == 1000 * 2_500 + 100 * 10_000
    assert 0 < call.seconds < 5


@ASYNC
def test_async_answer_is_captured(make: Make, address: str, tracer: WorkflowTracer) -> None:
    async def run() -> Any:
        async with async_wrapped(tracer, make, address) as client:
            return await client.chat.completions.create(**ask())

    assert asyncio.run(run()).choices[0].message.content == TEXT
    (call,) = captured(tracer)
    assert (call.response, call.complete, call.completion_tokens) == (TEXT, True, 100)


@SYNC
def test_stream_is_captured_and_its_usage_hidden(
    make: Make, address: str, tracer: WorkflowTracer
) -> None:
    with make(address) as plain:
        bare = list(plain.chat.completions.create(**ask(stream=True)))
        chunks = list(wrapped(tracer, plain).chat.completions.create(**ask(stream=True)))
    assert chunks == bare
    assert all(chunk.usage is None for chunk in chunks)
    (call,) = captured(tracer)
    assert (call.response, call.success, call.complete) == (TEXT, True, True)
    assert (call.prompt_tokens, call.completion_tokens) == (1000, 100)
    assert Provider.received[-1][1]["stream_options"] == {"include_usage": True}


@ASYNC
def test_async_stream_is_captured(make: Make, address: str, tracer: WorkflowTracer) -> None:
    async def run() -> list[Any]:
        async with async_wrapped(tracer, make, address) as client:
            stream = await client.chat.completions.create(**ask(stream=True))
            assert isinstance(stream, openai.AsyncStream)
            return [chunk async for chunk in stream]

    assert all(chunk.usage is None for chunk in asyncio.run(run()))
    (call,) = captured(tracer)
    assert (call.response, call.complete, call.completion_tokens) == (TEXT, True, 100)


def test_usage_that_the_application_asked_for_is_passed_on(
    address: str, tracer: WorkflowTracer
) -> None:
    with openai_client(address) as plain:
        stream = wrapped(tracer, plain).chat.completions.create(
            **ask(stream=True, stream_options={"include_usage": True})
        )
        assert list(stream)[-1].usage.completion_tokens == 100
        asked_not = ask(stream=True, stream_options={"include_usage": False})
        list(wrapped(tracer, plain).chat.completions.create(**asked_not))
    assert Provider.received[-1][1]["stream_options"] == {"include_usage": False}
    assert [call.completion_tokens for call in captured(tracer)] == [100, None]


def test_usage_is_not_asked_for_when_the_spec_forbids_it(address: str, tmp_path: Path) -> None:
    spec = CaptureSpec(strict=True, stream_usage=False)
    with WorkflowTracer(spec, spool_dir=tmp_path) as tracer, openai_client(address) as plain:
        list(wrapped(tracer, plain).chat.completions.create(**ask(stream=True)))
    assert "stream_options" not in Provider.received[-1][1]


@pytest.mark.parametrize("stream", [False, True])
def test_native_tool_calls(stream: bool, address: str, tracer: WorkflowTracer) -> None:
    with openai_client(address) as plain:
        result = wrapped(tracer, plain, track="toolcall").chat.completions.create(
            **ask("tool", tools=[TOOL], stream=stream)
        )
        if stream:
            list(result)
    (call,) = captured(tracer)
    assert call.tool_calls == (ToolUse(name="book", arguments={"seats": 2}),)
    assert (call.response, call.finish_reason, call.track) == (None, "tool_calls", "toolcall")
    (tool,) = call.tools
    assert tool.name == "book"
    assert tool.parameters == TOOL["function"]["parameters"]


@pytest.mark.parametrize("stream", [False, True])
def test_broken_arguments_are_kept_as_text(
    stream: bool, address: str, tracer: WorkflowTracer
) -> None:
    with openai_client(address) as plain:
        result = wrapped(tracer, plain).chat.completions.create(
            **ask("broken-arguments", tools=[TOOL], stream=stream)
        )
        if stream:
            list(result)
    (call,) = captured(tracer)
    assert call.tool_calls == ()
    assert json.loads(call.response or "") == {"name": "book", "arguments": '{"seats": 2'}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("wish", "source"), [("hello", "llm"), ("student", "slm")])
def test_a_students_answer_is_known_as_such(
    wish: str, source: str, stream: bool, address: str, tracer: WorkflowTracer
) -> None:
    with openai_client(address) as plain:
        list(wrapped(tracer, plain).chat.completions.create(**ask(wish, stream=stream)))
    assert captured(tracer)[0].source == source


@pytest.mark.parametrize("stream", [False, True])
def test_error_of_the_provider(stream: bool, address: str, tracer: WorkflowTracer) -> None:
    with openai_client(address) as plain, pytest.raises(openai.RateLimitError):
        wrapped(tracer, plain).chat.completions.create(**ask("error", stream=stream))
    (call,) = captured(tracer)
    assert not call.success
    assert call.response is None
    assert (call.error or "").startswith("RateLimitError")
    assert call.cost_nanousd is None


def test_no_server(tracer: WorkflowTracer) -> None:
    with openai_client("http://127.0.0.1:9") as plain, pytest.raises(openai.APIConnectionError):
        wrapped(tracer, plain).chat.completions.create(**ask())
    (call,) = captured(tracer)
    assert (call.success, (call.error or "").partition(":")[0]) == (False, "APIConnectionError")


def _read_all(stream: Any, _: WorkflowTracer) -> None:
    list(stream)


def _break_and_drop(stream: Any, _: WorkflowTracer) -> None:
    for number, _chunk in enumerate(stream):
        if number == 4:
            break


def _break_inside_with(stream: Any, _: WorkflowTracer) -> None:
    with stream as chunks:
        for number, _chunk in enumerate(chunks):
            if number == 4:
                break


def _close_held(stream: Any, _: WorkflowTracer) -> None:
    for _number in range(5):
        next(stream)
    stream.close()


def _drop_unread(stream: Any, _: WorkflowTracer) -> None:
    pass


def _hold_unread(stream: Any, tracer: WorkflowTracer) -> None:
    tracer.close()
    stream.close()


def _peek_then_go_on(stream: Any, _: WorkflowTracer) -> None:
    next(iter(stream))
    for _chunk in stream:
        break
    list(stream)


def _raise_inside_with(stream: Any, _: WorkflowTracer) -> None:
    with contextlib.suppress(ZeroDivisionError), stream as chunks:
        for number, _chunk in enumerate(chunks):
            if number == 4:
                raise ZeroDivisionError


THREE_WORDS = "word0 word1 word2 "


@pytest.mark.parametrize(
    ("end", "response", "complete"),
    [
        (_read_all, TEXT, True),
        (_peek_then_go_on, TEXT, True),
        (_break_and_drop, THREE_WORDS, False),
        (_break_inside_with, THREE_WORDS, False),
        (_raise_inside_with, THREE_WORDS, False),
        (_close_held, THREE_WORDS, False),
        (_drop_unread, None, False),
        (_hold_unread, None, False),
    ],
)
@SYNC
def test_every_end_of_a_stream_gives_one_record(
    make: Make,
    end: Callable[[Any, WorkflowTracer], None],
    response: str | None,
    complete: bool,
    address: str,
    tracer: WorkflowTracer,
) -> None:
    with make(address) as plain:
        end(wrapped(tracer, plain).chat.completions.create(**ask(stream=True)), tracer)
        gc.collect()
    (call,) = captured(tracer)
    assert (call.response, call.complete, call.success) == (response, complete, True)


async def _async_read_all(stream: Any) -> None:
    async for _ in stream:
        pass


async def _async_break(stream: Any) -> None:
    number = 0
    async for _ in stream:
        number += 1
        if number == 5:
            break


async def _async_close_held(stream: Any) -> None:
    for _ in range(5):
        await stream.__anext__()
    await stream.close()


async def _async_with_break(stream: Any) -> None:
    async with stream as chunks:
        await _async_break(chunks)


async def _async_cancel(stream: Any) -> None:
    reached = asyncio.Event()

    async def read() -> None:
        for _ in range(5):
            await stream.__anext__()
        reached.set()
        await stream.__anext__()
        raise asyncio.CancelledError  # the data was there before the cancellation came

    task = asyncio.create_task(read())
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    ("end", "complete"),
    [
        (_async_read_all, True),
        (_async_break, False),
        (_async_close_held, False),
        (_async_with_break, False),
        (_async_cancel, False),
    ],
)
@ASYNC
def test_every_end_of_an_async_stream_gives_one_record(
    make: Make, end: Callable[[Any], Any], complete: bool, address: str, tracer: WorkflowTracer
) -> None:
    async def run() -> None:
        async with async_wrapped(tracer, make, address) as client:
            await end(await client.chat.completions.create(**ask(stream=True)))

    asyncio.run(run())
    gc.collect()
    (call,) = captured(tracer)
    assert call.complete == complete
    assert call.success
    assert (call.response == TEXT) if complete else (call.response or "").startswith(THREE_WORDS)


@pytest.mark.parametrize("wish", ["break-off", "cut"])
def test_stream_that_the_provider_breaks_off(
    wish: str, address: str, tracer: WorkflowTracer
) -> None:
    with openai_client(address) as plain:
        stream = wrapped(tracer, plain).chat.completions.create(**ask(wish, stream=True))
        if wish == "break-off":
            with pytest.raises(openai.APIError):
                list(stream)
        else:
            list(stream)  # the library takes the end of the connection for the end
    (call,) = captured(tracer)
    assert (call.response, call.complete) == (THREE_WORDS, False)
    assert call.success == (wish == "cut")
    assert (call.error or "").startswith("APIError" if wish == "break-off" else "")


def test_leaving_after_the_finish_reason_is_complete(address: str, tracer: WorkflowTracer) -> None:
    with openai_client(address) as plain:
        stream = wrapped(tracer, plain).chat.completions.create(**ask(stream=True))
        for chunk in stream:
            if chunk.choices and chunk.choices[0].finish_reason:
                break
        stream.close()
    (call,) = captured(tracer)
    assert (call.response, call.complete, call.completion_tokens) == (TEXT, True, None)


def test_the_request_is_recorded_as_it_was_sent(address: str, tracer: WorkflowTracer) -> None:
    request = ask(stream=True)
    with openai_client(address) as plain:
        stream = wrapped(tracer, plain).chat.completions.create(**request)
        request["messages"].append({"role": "user", "content": "added later"})
        list(stream)
    assert len(captured(tracer)[0].messages) == 2


def test_helpers_of_the_library(address: str, tracer: WorkflowTracer) -> None:
    with openai_client(address) as plain:
        client = wrapped(tracer, plain)
        client.chat.completions.parse(**ask())
        with client.chat.completions.stream(**ask()) as stream:
            assert stream.get_final_completion().choices[0].message.content == TEXT
    assert [(call.response, call.complete) for call in captured(tracer)] == [(TEXT, True)] * 2


def test_raw_responses(address: str, tracer: WorkflowTracer) -> None:
    with openai_client(address) as plain:
        client = wrapped(tracer, plain)
        raw = client.chat.completions.with_raw_response.create(**ask())
        assert raw.headers["content-type"] == "application/json"
        assert raw.parse().choices[0].message.content == TEXT
        raw = client.with_raw_response.chat.completions.create(**ask(stream=True))
        assert "".join(c.choices[0].delta.content or "" for c in raw.parse() if c.choices) == TEXT
        with client.chat.completions.with_streaming_response.create(**ask()) as response:
            assert response.parse().choices[0].message.content == TEXT
    calls = captured(tracer)
    assert [(call.response, call.complete) for call in calls] == [(TEXT, True)] * 3


def test_async_raw_responses(address: str, tracer: WorkflowTracer) -> None:
    async def run() -> None:
        async with async_wrapped(tracer, async_openai_client, address) as client:
            raw = await client.chat.completions.with_raw_response.create(**ask())
            assert raw.parse().choices[0].message.content == TEXT
            raw = await client.chat.completions.with_raw_response.create(**ask(stream=True))
            assert [chunk async for chunk in raw.parse()]
            streaming = client.chat.completions.with_streaming_response
            async with streaming.create(**ask()) as response:
                assert (await response.parse()).choices[0].message.content == TEXT

    asyncio.run(run())
    assert [(call.response, call.complete) for call in captured(tracer)] == [(TEXT, True)] * 3


def test_raw_response_that_nobody_parses(address: str, tracer: WorkflowTracer) -> None:
    with openai_client(address) as plain:
        client = wrapped(tracer, plain)
        with client.chat.completions.with_streaming_response.create(**ask(stream=True)) as raw:
            assert b"".join(raw.iter_bytes())
        del raw
        gc.collect()
    (call,) = captured(tracer)
    assert (call.response, call.complete, call.success) == (None, False, True)


def test_options_keep_the_tracer(address: str, tracer: WorkflowTracer) -> None:
    with openai_client(address) as plain:
        client = wrapped(tracer, plain).with_options(timeout=5).copy(max_retries=0)
        assert isinstance(client, openai.OpenAI)
        client.chat.completions.create(**ask())
    assert len(captured(tracer)) == 1


def test_the_given_client_stays_as_it_was(address: str, tracer: WorkflowTracer) -> None:
    with openai_client(address) as plain:
        plain.chat.completions.create(**ask())
        wrapped(tracer, plain)
        plain.chat.completions.create(**ask())
    assert captured(tracer) == []


def test_two_agents_share_one_client(address: str, tracer: WorkflowTracer) -> None:
    with openai_client(address) as plain:
        for name in ("planner", "coder"):
            client = tracer.wrap(plain, agent_type="sub-agent", agent_name=name)
            client.chat.completions.create(**ask())
    assert [call.agent_name for call in captured(tracer)] == ["planner", "coder"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_wrapped_twice_captures_once(
    stream: bool, address: str, tracer: WorkflowTracer
) -> None:
    with openai_client(address) as plain:
        inner = tracer.wrap(plain, agent_type="sub-agent", agent_name="inner")
        outer = tracer.wrap(inner, agent_type="orchestrator", agent_name="outer")
        result = outer.with_options(timeout=5).chat.completions.create(**ask(stream=stream))
        list(result)
    assert [call.agent_name for call in captured(tracer)] == ["outer"]


def test_conversations_and_tags(address: str, tracer: WorkflowTracer) -> None:
    with openai_client(address) as plain:
        client = wrapped(tracer, plain, conversation_id="default", tags={"team": "a", "env": "x"})
        client.chat.completions.create(**ask())
        with tracer.conversation("c-1", tags={"env": "y"}):
            stream = client.chat.completions.create(**ask(stream=True))
        list(stream)  # read outside of the block, asked inside
    first, second = captured(tracer)
    assert (first.conversation_id, first.tags) == ("default", {"team": "a", "env": "x"})
    assert (second.conversation_id, second.tags) == ("c-1", {"team": "a", "env": "y"})


def test_async_conversations_do_not_mix(address: str, tracer: WorkflowTracer) -> None:
    async def talk(client: Any, name: str) -> None:
        with tracer.conversation(name):
            for _ in range(3):
                await client.chat.completions.create(**ask(name))

    async def run() -> None:
        async with async_wrapped(tracer, async_openai_client, address) as client:
            await asyncio.gather(*(talk(client, f"c{number}") for number in range(5)))

    asyncio.run(run())
    calls = captured(tracer)
    assert len(calls) == 15
    assert all(call.conversation_id == call.messages[-1].content for call in calls)


def test_other_endpoints_pass_through(address: str, tracer: WorkflowTracer) -> None:
    with openai_client(address) as plain:
        body = {"messages": [{"role": "user", "content": "hello"}]}
        wrapped(tracer, plain).post("/elsewhere", cast_to=object, body=body)
    assert Provider.received[-1][0] == "/v1/elsewhere"
    assert captured(tracer) == []


class NewerClient:
    """A client of some later library: it looks alike, but sends by another way."""

    def __init__(self) -> None:
        self.chat = type("Chat", (), {"completions": type("C", (), {"_post": print})()})()

    def post(self) -> None: ...

    def copy(self) -> None: ...


@pytest.mark.parametrize("client", [object(), "client", openai, NewerClient()])
def test_what_cannot_be_wrapped_is_refused(client: Any, tracer: WorkflowTracer) -> None:
    with pytest.raises(CaptureError, match="capture_call"):
        wrapped(tracer, client)


def test_a_full_spool_does_not_disturb_the_application(address: str, tmp_path: Path) -> None:
    spec = CaptureSpec(segment_bytes=4096, spool_bytes=4096)
    with WorkflowTracer(spec, spool_dir=tmp_path) as tracer, openai_client(address) as plain:
        client = wrapped(tracer, plain)
        for _ in range(10):
            assert client.chat.completions.create(**ask()).choices[0].message.content == TEXT
            assert len(list(client.chat.completions.create(**ask(stream=True)))) == 43
        health = tracer.health()
    assert health.captured == 20
    assert health.dropped == {"spool is full": 20 - health.written}
    assert 0 < health.written < 20
