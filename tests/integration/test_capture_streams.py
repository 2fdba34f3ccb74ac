"""However a stream ends, it is captured once, and known to be incomplete if it is."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from slm_core.capture import CaptureSpec, WorkflowTracer
from slm_core.capture.encoding import decode
from slm_core.capture.segment import read_frames
from slm_core.records import Call
from slm_core.testing.provider import TEXT, THREE_WORDS, ClientKind, FakeProvider

pytestmark = pytest.mark.integration


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
def test_stream_is_captured_and_its_usage_hidden(
    kind: ClientKind, provider: FakeProvider, tracer: WorkflowTracer
) -> None:
    with provider.client(kind) as plain:
        bare = list(plain.chat.completions.create(**ask(stream=True)))
        chunks = list(wrapped(tracer, plain).chat.completions.create(**ask(stream=True)))
    assert chunks == bare
    assert all(chunk.usage is None for chunk in chunks)
    (call,) = captured(tracer)
    assert (call.response, call.success, call.complete) == (TEXT, True, True)
    assert (call.prompt_tokens, call.completion_tokens) == (1000, 100)
    assert provider.received[-1].body["stream_options"] == {"include_usage": True}


@ASYNC
def test_async_stream_is_captured(
    kind: ClientKind, provider: FakeProvider, tracer: WorkflowTracer
) -> None:
    async def run() -> list[Any]:
        async with async_wrapped(tracer, provider, kind) as client:
            stream = await client.chat.completions.create(**ask(stream=True))
            assert isinstance(stream, openai.AsyncStream)
            return [chunk async for chunk in stream]

    assert all(chunk.usage is None for chunk in asyncio.run(run()))
    (call,) = captured(tracer)
    assert (call.response, call.complete, call.completion_tokens) == (TEXT, True, 100)


def test_usage_that_the_application_asked_for_is_passed_on(
    provider: FakeProvider, tracer: WorkflowTracer
) -> None:
    with provider.client("openai") as plain:
        stream = wrapped(tracer, plain).chat.completions.create(
            **ask(stream=True, stream_options={"include_usage": True})
        )
        assert list(stream)[-1].usage.completion_tokens == 100
        asked_not = ask(stream=True, stream_options={"include_usage": False})
        list(wrapped(tracer, plain).chat.completions.create(**asked_not))
    assert provider.received[-1].body["stream_options"] == {"include_usage": False}
    assert [call.completion_tokens for call in captured(tracer)] == [100, None]


def test_usage_is_not_asked_for_when_the_spec_forbids_it(
    provider: FakeProvider, tmp_path: Path
) -> None:
    spec = CaptureSpec(strict=True, stream_usage=False)
    with WorkflowTracer(spec, spool_dir=tmp_path) as tracer, provider.client("openai") as plain:
        list(wrapped(tracer, plain).chat.completions.create(**ask(stream=True)))
    assert "stream_options" not in provider.received[-1].body


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
    kind: ClientKind,
    end: Callable[[Any, WorkflowTracer], None],
    response: str | None,
    complete: bool,
    provider: FakeProvider,
    tracer: WorkflowTracer,
) -> None:
    with provider.client(kind) as plain:
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
    kind: ClientKind,
    end: Callable[[Any], Any],
    complete: bool,
    provider: FakeProvider,
    tracer: WorkflowTracer,
) -> None:
    async def run() -> None:
        async with async_wrapped(tracer, provider, kind) as client:
            await end(await client.chat.completions.create(**ask(stream=True)))

    asyncio.run(run())
    gc.collect()
    (call,) = captured(tracer)
    assert call.complete == complete
    assert call.success
    assert (call.response == TEXT) if complete else (call.response or "").startswith(THREE_WORDS)


@pytest.mark.parametrize("wish", ["break-off", "cut"])
def test_stream_that_the_provider_breaks_off(
    wish: str, provider: FakeProvider, tracer: WorkflowTracer
) -> None:
    with provider.client("openai") as plain:
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


def test_leaving_after_the_finish_reason_is_complete(
    provider: FakeProvider, tracer: WorkflowTracer
) -> None:
    with provider.client("openai") as plain:
        stream = wrapped(tracer, plain).chat.completions.create(**ask(stream=True))
        for chunk in stream:
            if chunk.choices and chunk.choices[0].finish_reason:
                break
        stream.close()
    (call,) = captured(tracer)
    assert (call.response, call.complete, call.completion_tokens) == (TEXT, True, None)
