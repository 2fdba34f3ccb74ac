"""What passes through a gateway to the teacher, and what is kept of the answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from slm_core.evaluation import compare_answers
from slm_core.serving.app import build_app
from slm_core.serving.chat import Limits
from slm_core.serving.engine import Engine
from slm_core.serving.exchange import Exchange, conversation_of
from slm_core.serving.gateway import Gateway
from slm_core.serving.router import LiveModels
from slm_core.serving.shadow import Shadows
from slm_core.serving.spec import TeacherSpec
from slm_core.serving.tally import Tally
from slm_core.serving.upstream import StreamReader, Upstream
from slm_core.store import open_store
from slm_core.testing.provider import MODEL, TEXT, FakeProvider

USER = {"role": "user", "content": "hi"}


class Front:
    """A gateway without adapters before a teacher, and what it recorded."""

    def __init__(self, teacher: FakeProvider, store: Any) -> None:
        self.teacher = teacher
        self.exchanges: list[Exchange] = []
        self._store = store

    def post(self, content: str | bytes) -> httpx.Response:
        return asyncio.run(self._post(content))

    def ask(self, wish: str, **options: Any) -> httpx.Response:
        messages = [{"role": "user", "content": wish}]
        return self.post(json.dumps({"model": "desk/toolcall", "messages": messages, **options}))

    async def _post(self, content: str | bytes) -> httpx.Response:
        spec = TeacherSpec(
            kind="openai",
            endpoint=f"{self.teacher.base_url}/v1",
            api_key=SecretStr("key"),
            model="the-teacher",
        )
        engine, tally = Engine(workers=1), Tally(self._store)
        models = LiveModels(self._store, lambda source: None)
        record = self.exchanges.append
        shadows = Shadows(engine, tally, compare_answers, record, timeout_seconds=1.0, max_queue=1)
        limits = Limits(2**20, 16, 60.0)
        upstream = Upstream(spec, 60.0)
        gateway = Gateway(engine, models, upstream, shadows, tally, record, limits, 1.0)
        app = build_app(engine, models, limits, None, gateway)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            answer = await client.post("/v1/chat/completions", content=content)
        await upstream.close()
        return answer


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    with FakeProvider() as teacher, open_store(f"sqlite:///{tmp_path}/slm.db") as store:
        yield Front(teacher, store)


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_teacher_said_is_recorded_once(front: Front, stream: bool) -> None:
    assert front.ask("hi", stream=stream, n=2).status_code == 200
    (one,) = front.exchanges
    assert one.message["content"] == TEXT, "of several choices the first"
    assert (one.model, one.source, one.finish_reason) == (MODEL, "llm", "stop")


@pytest.mark.parametrize("stream", [False, True])
def test_a_student_behind_the_gateway_is_known(front: Front, stream: bool) -> None:
    front.ask("student", stream=stream)
    assert [one.source for one in front.exchanges] == ["slm"]


def test_a_stream_of_another_shape_reaches_the_caller_and_is_not_recorded(front: Front) -> None:
    answer = front.ask("odd", stream=True)
    assert answer.status_code == 200
    assert answer.text.endswith("data: [DONE]\n\n")
    assert front.exchanges == []


@pytest.mark.parametrize(
    "chunk",
    [
        {"choices": 5},
        {"choices": [5]},
        {"choices": [{"delta": 5}]},
        {"choices": [{"delta": {"content": [5]}}]},
        {"choices": [{"delta": {"tool_calls": [{"index": "a"}]}}]},
        {"choices": [{"delta": {"tool_calls": [{"function": {"name": 5}}]}}]},
    ],
)
def test_an_odd_chunk_ends_the_reading(chunk: Any) -> None:
    reader = StreamReader()
    for one in (chunk, {"choices": [{"finish_reason": "stop"}]}):
        reader.take(b"data: " + json.dumps(one).encode() + b"\n\n")
    assert reader.completion() is None


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_without_a_name_is_recorded_under_the_configured_one(
    front: Front, stream: bool
) -> None:
    front.ask("nameless", stream=stream)
    assert [one.model for one in front.exchanges] == ["the-teacher"]


@pytest.mark.parametrize("value", ['"\\ud83d"', "NaN", "1e999"])
def test_what_utf_8_and_json_cannot_say_passes_as_it_is(front: Front, value: str) -> None:
    message = f'{{"role": "user", "content": "hi", "odd": {value}}}'
    body = f'{{"model": "desk/toolcall", "messages": [{message}]}}'
    assert front.post(body).status_code == 200
    (received,) = front.teacher.received
    assert repr(received.body["messages"]) == repr(json.loads(body)["messages"])


@pytest.mark.parametrize("depth", [300, 450, 800, 900, 940, 960, 980, 1200])
def test_what_is_nested_too_deeply_is_refused_or_passes(front: Front, depth: int) -> None:
    nested = "[" * depth + "]" * depth
    turn = f'{{"role": "user", "content": "hi", "odd": {nested}}}'
    body = f'{{"model": "desk/toolcall", "messages": [{turn}]}}'
    assert front.post(body).status_code in (200, 400)


def test_a_conversation_is_known_by_its_beginning_whatever_the_instructions() -> None:
    began = conversation_of([USER])
    for role in ("system", "developer"):
        at_noon = {"role": role, "content": "It is 12:00."}
        assert conversation_of([at_noon, USER, {"role": "assistant", "content": "yes"}]) == began
    assert conversation_of([{"role": "user", "content": "ho"}]) != began
    greeting = {"role": "assistant", "content": "Welcome"}
    assert conversation_of([greeting, USER]) != began
