"""A wrapped OpenAI client, in all four forms, against a server that speaks its wire format."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion
from pydantic import BaseModel, ValidationError

from slm_core.capture import CaptureSpec, WorkflowTracer
from slm_core.capture.encoding import decode
from slm_core.capture.segment import read_frames
from slm_core.errors import CaptureError
from slm_core.records import Call, Message, ToolUse
from slm_core.testing.provider import TEXT, ClientKind, FakeProvider

pytestmark = pytest.mark.integration

TOOL = {
    "type": "function",
    "function": {
        "name": "book",
        "description": "Books a table.",
        "parameters": {"type": "object", "properties": {"seats": {"type": "integer"}}},
    },
}


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as provider:
        yield provider


@pytest.fixture
def tracer(tmp_path: Path) -> Iterator[WorkflowTracer]:
    with WorkflowTracer(CaptureSpec(strict=True), spool_dir=tmp_path / "spool") as tracer:
        yield tracer


def captured(tracer: WorkflowTracer) -> list[Call]:
    """Return what the spool holds, in order."""
    segments = sorted(tracer.spool_dir.glob("*.seg"))
    return [decode(f.body) for path in segments for f in read_frames(path, 0, finished=False)]


SYNC = pytest.mark.parametrize("kind", ["openai", "azure"])
ASYNC = pytest.mark.parametrize("kind", ["async-openai", "async-azure"])


def wrapped(tracer: WorkflowTracer, client: Any, **options: Any) -> Any:
    return tracer.wrap(client, agent_type="sub-agent", agent_name="booking", **options)


def ask(wish: str = "hello", **more: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": wish}]
    return {"model": "gpt-4o", "messages": messages, **more}


@contextlib.asynccontextmanager
async def async_wrapped(
    tracer: WorkflowTracer, provider: FakeProvider, kind: ClientKind
) -> AsyncIterator[Any]:
    async with provider.client(kind) as client:
        yield wrapped(tracer, client)


@SYNC
def test_answer_is_captured(
    kind: ClientKind, provider: FakeProvider, tracer: WorkflowTracer
) -> None:
    with provider.client(kind) as plain:
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


def test_azure_is_asked_at_its_own_address(provider: FakeProvider, tracer: WorkflowTracer) -> None:
    with provider.client("azure") as plain:
        wrapped(tracer, plain).chat.completions.create(**ask())
    path = "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21"
    assert provider.received[-1].path == path
    assert len(captured(tracer)) == 1


@ASYNC
def test_async_answer_is_captured(
    kind: ClientKind, provider: FakeProvider, tracer: WorkflowTracer
) -> None:
    async def run() -> Any:
        async with async_wrapped(tracer, provider, kind) as client:
            return await client.chat.completions.create(**ask())

    assert asyncio.run(run()).choices[0].message.content == TEXT
    (call,) = captured(tracer)
    assert (call.response, call.complete, call.completion_tokens) == (TEXT, True, 100)


@pytest.mark.parametrize("stream", [False, True])
def test_native_tool_calls(stream: bool, provider: FakeProvider, tracer: WorkflowTracer) -> None:
    with provider.client("openai") as plain:
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
    stream: bool, provider: FakeProvider, tracer: WorkflowTracer
) -> None:
    with provider.client("openai") as plain:
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
    wish: str, source: str, stream: bool, provider: FakeProvider, tracer: WorkflowTracer
) -> None:
    with provider.client("openai") as plain:
        list(wrapped(tracer, plain).chat.completions.create(**ask(wish, stream=stream)))
    assert captured(tracer)[0].source == source


@pytest.mark.parametrize("stream", [False, True])
def test_error_of_the_provider(
    stream: bool, provider: FakeProvider, tracer: WorkflowTracer
) -> None:
    with provider.client("openai") as plain, pytest.raises(openai.RateLimitError):
        wrapped(tracer, plain).chat.completions.create(**ask("error", stream=stream))
    (call,) = captured(tracer)
    assert not call.success
    assert call.response is None
    assert (call.error or "").startswith("RateLimitError")
    assert call.cost_nanousd is None


def test_no_server(tracer: WorkflowTracer) -> None:
    with (
        openai.OpenAI(base_url="http://127.0.0.1:9", api_key="k", max_retries=0) as plain,
        pytest.raises(openai.APIConnectionError),
    ):
        wrapped(tracer, plain).chat.completions.create(**ask())
    (call,) = captured(tracer)
    assert (call.success, (call.error or "").partition(":")[0]) == (False, "APIConnectionError")


def test_the_request_is_recorded_as_it_was_sent(
    provider: FakeProvider, tracer: WorkflowTracer
) -> None:
    request = ask(stream=True)
    with provider.client("openai") as plain:
        stream = wrapped(tracer, plain).chat.completions.create(**request)
        request["messages"].append({"role": "user", "content": "added later"})
        list(stream)
    assert len(captured(tracer)[0].messages) == 2


def test_helpers_of_the_library(provider: FakeProvider, tracer: WorkflowTracer) -> None:
    with provider.client("openai") as plain:
        client = wrapped(tracer, plain)
        client.chat.completions.parse(**ask())
        with client.chat.completions.stream(**ask()) as stream:
            assert stream.get_final_completion().choices[0].message.content == TEXT
    assert [(call.response, call.complete) for call in captured(tracer)] == [(TEXT, True)] * 2


def test_raw_responses(provider: FakeProvider, tracer: WorkflowTracer) -> None:
    with provider.client("openai") as plain:
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


def test_async_raw_responses(provider: FakeProvider, tracer: WorkflowTracer) -> None:
    async def run() -> None:
        async with async_wrapped(tracer, provider, "async-openai") as client:
            raw = await client.chat.completions.with_raw_response.create(**ask())
            assert raw.parse().choices[0].message.content == TEXT
            raw = await client.chat.completions.with_raw_response.create(**ask(stream=True))
            assert [chunk async for chunk in raw.parse()]
            streaming = client.chat.completions.with_streaming_response
            async with streaming.create(**ask()) as response:
                assert (await response.parse()).choices[0].message.content == TEXT

    asyncio.run(run())
    assert [(call.response, call.complete) for call in captured(tracer)] == [(TEXT, True)] * 3


def test_an_error_while_parsing_comes_when_the_application_parses(
    provider: FakeProvider, tracer: WorkflowTracer
) -> None:
    class Seat(BaseModel):
        number: int

    with provider.client("openai") as plain:
        client = wrapped(tracer, plain)
        raw = client.chat.completions.with_raw_response.parse(**ask(), response_format=Seat)
        with pytest.raises(ValidationError):
            raw.parse()
    (call,) = captured(tracer)
    assert (call.success, (call.error or "").partition(":")[0]) == (False, "ValidationError")


def test_raw_response_that_nobody_parses(provider: FakeProvider, tracer: WorkflowTracer) -> None:
    with provider.client("openai") as plain:
        client = wrapped(tracer, plain)
        with client.chat.completions.with_streaming_response.create(**ask(stream=True)) as raw:
            assert b"".join(raw.iter_bytes())
        del raw
        gc.collect()
    (call,) = captured(tracer)
    assert (call.response, call.complete, call.success) == (None, False, True)


def test_options_keep_the_tracer(provider: FakeProvider, tracer: WorkflowTracer) -> None:
    with provider.client("openai") as plain:
        client = wrapped(tracer, plain).with_options(timeout=5).copy(max_retries=0)
        assert isinstance(client, openai.OpenAI)
        client.chat.completions.create(**ask())
    assert len(captured(tracer)) == 1


def test_the_given_client_stays_as_it_was(provider: FakeProvider, tracer: WorkflowTracer) -> None:
    with provider.client("openai") as plain:
        plain.chat.completions.create(**ask())
        wrapped(tracer, plain)
        plain.chat.completions.create(**ask())
    assert captured(tracer) == []


def test_two_agents_share_one_client(provider: FakeProvider, tracer: WorkflowTracer) -> None:
    with provider.client("openai") as plain:
        for name in ("planner", "coder"):
            client = tracer.wrap(plain, agent_type="sub-agent", agent_name=name)
            client.chat.completions.create(**ask())
    assert [call.agent_name for call in captured(tracer)] == ["planner", "coder"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_wrapped_twice_captures_once(
    stream: bool, provider: FakeProvider, tracer: WorkflowTracer
) -> None:
    with provider.client("openai") as plain:
        inner = tracer.wrap(plain, agent_type="sub-agent", agent_name="inner")
        outer = tracer.wrap(inner, agent_type="orchestrator", agent_name="outer")
        result = outer.with_options(timeout=5).chat.completions.create(**ask(stream=stream))
        list(result)
    assert [call.agent_name for call in captured(tracer)] == ["outer"]


def test_conversations_and_tags(provider: FakeProvider, tracer: WorkflowTracer) -> None:
    with provider.client("openai") as plain:
        client = wrapped(tracer, plain, conversation_id="default", tags={"team": "a", "env": "x"})
        client.chat.completions.create(**ask())
        with tracer.conversation("c-1", tags={"env": "y"}):
            stream = client.chat.completions.create(**ask(stream=True))
        list(stream)  # read outside of the block, asked inside
    first, second = captured(tracer)
    assert (first.conversation_id, first.tags) == ("default", {"team": "a", "env": "x"})
    assert (second.conversation_id, second.tags) == ("c-1", {"team": "a", "env": "y"})


def test_async_conversations_do_not_mix(provider: FakeProvider, tracer: WorkflowTracer) -> None:
    async def talk(client: Any, name: str) -> None:
        with tracer.conversation(name):
            for _ in range(3):
                await client.chat.completions.create(**ask(name))

    async def run() -> None:
        async with async_wrapped(tracer, provider, "async-openai") as client:
            await asyncio.gather(*(talk(client, f"c{number}") for number in range(5)))

    asyncio.run(run())
    calls = captured(tracer)
    assert len(calls) == 15
    assert all(call.conversation_id == call.messages[-1].content for call in calls)


def test_other_endpoints_pass_through(provider: FakeProvider, tracer: WorkflowTracer) -> None:
    with provider.client("openai") as plain:
        body = {"messages": [{"role": "user", "content": "hello"}]}
        wrapped(tracer, plain).post("/elsewhere", cast_to=object, body=body)
    assert provider.received[-1].path == "/v1/elsewhere"
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


def test_a_full_spool_does_not_disturb_the_application(
    provider: FakeProvider, tmp_path: Path
) -> None:
    spec = CaptureSpec(segment_bytes=4096, spool_bytes=4096)
    with WorkflowTracer(spec, spool_dir=tmp_path) as tracer, provider.client("openai") as plain:
        client = wrapped(tracer, plain)
        for _ in range(10):
            assert client.chat.completions.create(**ask()).choices[0].message.content == TEXT
            assert len(list(client.chat.completions.create(**ask(stream=True)))) == 43
        health = tracer.health()
    assert health.captured == 20
    assert health.dropped == {"spool is full": 20 - health.written}
    assert 0 < health.written < 20
