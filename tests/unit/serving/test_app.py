"""The HTTP side alone: the real ``openai`` client on one end, a scripted engine on the other."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import openai
import pytest
import uvicorn

from slm_core.backends.base import Completion, Request
from slm_core.capture import CaptureSpec, WorkflowTracer, drain_spool
from slm_core.dataset import why_unusable
from slm_core.errors import BackendUnavailable, ModelError, Overloaded, PromptTooLong
from slm_core.serving.app import build_app
from slm_core.serving.chat import Limits
from slm_core.serving.engine import Engine, Health
from slm_core.serving.keeper import Job
from slm_core.serving.messages import Delta, Done, Event, Failed, ModelSource, Run
from slm_core.serving.router import FixedModels
from slm_core.store import open_store

CALL = '<tool_call name="f">{"city": "Zürich", "n": 2}</tool_call>'
OFFER: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
USER: Any = [{"role": "user", "content": "hi"}]


class ScriptedEngine:
    """Says a text, token by token, or what ``events`` returns."""

    def __init__(self) -> None:
        self.text = "Hello there"
        self.finish = "stop"
        self.events: Callable[[], list[Event]] | None = None
        self.refuse: Exception | None = None
        self.silent = False
        self.ready = 1
        self.jobs: list[Job] = []

    def submit(
        self,
        source: ModelSource,
        request: Request,
        *,
        max_tokens: int,
        stop: tuple[str, ...],
        stream: bool,
        on_event: Callable[[Event], None],
    ) -> Job:
        if self.refuse:
            raise self.refuse
        job = Job(Run(1, source, request, max_tokens, stop, stream), on_event)
        self.jobs.append(job)
        if self.silent:
            return job
        pieces = [self.text[at : at + 3] for at in range(0, len(self.text), 3)] if stream else []
        done = Done(Completion(self.text, self.finish, 7, 5, 0.1))
        for event in self.events() if self.events else [*map(Delta, pieces), done]:
            job.report(event)
        return job

    def health(self) -> Health:
        return Health(workers=2, ready=self.ready, waiting=0)


@pytest.fixture(scope="module")
def engine_box() -> list[ScriptedEngine]:
    return [ScriptedEngine()]


@pytest.fixture(scope="module")
def url(engine_box: list[ScriptedEngine]) -> Iterator[str]:
    class Current:
        def __getattr__(self, name: str) -> Any:
            return getattr(engine_box[0], name)

    app = build_app(
        cast(Engine, Current()),
        FixedModels({"nano": ModelSource("m"), "desk/toolcall": ModelSource("m", "adapter")}),
        Limits(max_body_bytes=10_000, default_max_tokens=99, timeout_seconds=0.3),
        api_key="secret",
    )
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http="h11", ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def engine(engine_box: list[ScriptedEngine]) -> ScriptedEngine:
    engine_box[0] = ScriptedEngine()
    return engine_box[0]


@pytest.fixture
def client(url: str, engine: ScriptedEngine) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0) as client:
        yield client


def say(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(**{"model": "nano", "messages": USER, **options})


def stream(client: openai.OpenAI, **options: Any) -> tuple[list[str], Any, Any]:
    """Return the pieces of text, the last delta with tool calls, and the finish reason."""
    pieces, calls, reason = [], None, None
    for chunk in say(client, stream=True, **options):
        choice = chunk.choices[0]
        pieces += [choice.delta.content] if choice.delta.content else []
        calls = choice.delta.tool_calls or calls
        reason = choice.finish_reason or reason
    return pieces, calls, reason


def test_a_whole_answer(client: openai.OpenAI) -> None:
    answer = say(client)
    assert answer.choices[0].message.content == "Hello there"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "nano"
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (7, 5, 12)


@pytest.mark.parametrize(("model", "source"), [("nano", "llm"), ("desk/toolcall", "slm")])
@pytest.mark.parametrize("streamed", [False, True])
def test_capture_tells_an_adapters_answers_from_a_base_models(
    client: openai.OpenAI, tmp_path: Path, model: str, source: str, streamed: bool
) -> None:
    with WorkflowTracer(CaptureSpec(strict=True), spool_dir=tmp_path / "spool") as tracer:
        wrapped = tracer.wrap(client, agent_type="sub-agent", agent_name="desk")
        answer = say(wrapped, model=model, stream=streamed)
        assert not streamed or list(answer)
    with open_store(f"sqlite:///{tmp_path / 'slm.db'}") as store:
        drain_spool(tmp_path / "spool", store, usable=why_unusable)
        (call,) = store.calls.select()
    assert (call.source, call.response) == (source, "Hello there")


def test_a_streamed_answer(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    engine.finish = "length"
    pieces, _, reason = stream(client)
    assert pieces == ["Hel", "lo ", "the", "re"]
    assert reason == "length"
    chunks = list(say(client, stream=True, stream_options={"include_usage": True}))
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 12
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_the_engine_gets_what_was_asked(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    say(client, stop=["x"], max_tokens=3, tools=[OFFER], tool_choice="none")
    say(client, model="desk/toolcall")
    first, second = (cast(Run, job.message) for job in engine.jobs)
    assert (first.stop, first.max_tokens, first.stream) == (("x",), 3, False)
    assert [tool.name for tool in first.request.tools] == ["f"]
    assert (second.source, second.max_tokens) == (ModelSource("m", "adapter"), 99)


def test_an_exact_call_becomes_native(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    engine.text = CALL
    choice = say(client, tools=[OFFER]).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls
    assert call.function.name == "f"
    assert json.loads(call.function.arguments) == {"city": "Zürich", "n": 2}
    pieces, calls, reason = stream(client, tools=[OFFER])
    assert (pieces, reason) == ([], "tool_calls")
    assert json.loads(calls[0].function.arguments) == {"city": "Zürich", "n": 2}


def test_two_calls_become_two(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    engine.text = f"{CALL}\n{CALL}"
    assert len(say(client, tools=[OFFER]).choices[0].message.tool_calls) == 2
    assert [call.index for call in stream(client, tools=[OFFER])[1]] == [0, 1]


@pytest.mark.parametrize(
    "text", [CALL + " ok", "```\n" + CALL, CALL[:-1], "<tool_cal", "No tool fits this request."]
)
def test_anything_else_stays_text(client: openai.OpenAI, engine: ScriptedEngine, text: str) -> None:
    engine.text = text
    message = say(client, tools=[OFFER]).choices[0].message
    assert (message.content, message.tool_calls) == (text, None)
    pieces, calls, reason = stream(client, tools=[OFFER])
    assert ("".join(pieces), calls, reason) == (text, None, "stop")


@pytest.mark.parametrize("options", [{"tools": [OFFER], "tool_choice": "none"}, {}])
def test_a_call_is_text_for_those_who_want_text(
    client: openai.OpenAI, engine: ScriptedEngine, options: dict[str, Any]
) -> None:
    engine.text = CALL
    assert say(client, **options).choices[0].message.content == CALL
    pieces, calls, _ = stream(client, **options)
    assert ("".join(pieces), calls) == (CALL, None)
    assert len(pieces) > 1, "nothing to wait for: it streams as it comes"


def test_azure_names_the_model_in_the_path(url: str, engine: ScriptedEngine) -> None:
    with openai.AzureOpenAI(
        azure_endpoint=url, api_key="secret", api_version="2024-10-21", max_retries=0
    ) as client:
        assert say(client).choices[0].message.content == "Hello there"
        assert say(client, model="desk/toolcall").model == "desk/toolcall"
        assert "".join(stream(client)[0]) == "Hello there"
        with pytest.raises(openai.NotFoundError):
            say(client, model="other")
    plain = httpx.post(
        f"{url}/openai/deployments/nano/chat/completions",
        headers={"api-key": "secret"},
        json={"messages": USER},
    )
    assert plain.status_code == 400
    assert "api-version" in plain.json()["error"]["message"]


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["desk/toolcall", "nano"]
    assert client.models.retrieve("nano").id == "nano"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_a_wrong_key_is_refused_everywhere(url: str, engine: ScriptedEngine) -> None:
    for path in ("/v1/models", "/v1/models/nano"):
        assert httpx.get(url + path).status_code == 401
    wrong: list[dict[str, str]] = [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "secret2"},
        {"api-key": ""},
    ]
    for headers in wrong:
        answer = httpx.post(f"{url}/v1/chat/completions", headers=headers, content=b"{}")
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
    assert engine.jobs == []


def test_health_needs_no_key(url: str, engine: ScriptedEngine) -> None:
    up = httpx.get(f"{url}/healthz")
    assert (up.status_code, up.json()["status"], up.json()["ready"]) == (200, "ok", 1)
    engine.ready = 0
    down = httpx.get(f"{url}/healthz")
    assert (down.status_code, down.json()["status"]) == (503, "down")


KEY = {"authorization": "Bearer secret"}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("POST", "/", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
    ],
)
def test_paths_that_are_not_there(url: str, method: str, path: str, status: int) -> None:
    answer = httpx.request(method, url + path, headers=KEY)
    assert answer.status_code == status
    assert path in answer.json()["error"]["message"]


def test_bad_requests(client: openai.OpenAI, url: str) -> None:
    with pytest.raises(openai.NotFoundError, match=r"'other'.*desk/toolcall, nano"):
        say(client, model="other")
    with pytest.raises(openai.BadRequestError, match="temperature"):
        say(client, temperature=0.5)
    for content in (b"{not json", b"", b"[]"):
        answer = httpx.post(f"{url}/v1/chat/completions", headers=KEY, content=content)
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_body_over_the_limit_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        say(client, messages=[{"role": "user", "content": "x" * 20_000}])
    assert caught.value.status_code == 413


@pytest.mark.parametrize("streamed", [False, True])
def test_failures_before_the_first_word_have_a_status(
    client: openai.OpenAI, engine: ScriptedEngine, streamed: bool
) -> None:
    engine.events = lambda: [Failed(PromptTooLong("too long", prompt_tokens=9))]
    with pytest.raises(openai.BadRequestError) as long:
        say(client, stream=streamed)
    assert long.value.code == "context_length_exceeded"
    engine.events = lambda: [Failed(ModelError("not that file"))]
    with pytest.raises(openai.InternalServerError, match="not that file") as broken:
        say(client, stream=streamed)
    assert broken.value.status_code == 503


def test_a_failure_in_the_middle_ends_the_stream_with_an_error(
    client: openai.OpenAI, engine: ScriptedEngine
) -> None:
    engine.events = lambda: [Delta("Hel"), Failed(BackendUnavailable("all gone"))]
    chunks = say(client, stream=True)
    assert next(chunks).choices[0].delta.role == "assistant"
    assert next(chunks).choices[0].delta.content == "Hel"
    with pytest.raises(openai.APIError, match="all gone"):
        next(chunks)


def test_a_full_queue_asks_to_come_back(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    engine.refuse = Overloaded("full")
    with pytest.raises(openai.InternalServerError) as caught:
        say(client)
    assert caught.value.status_code == 503
    assert caught.value.response.headers["retry-after"] == "1"


def test_an_answer_that_takes_too_long_is_given_up(
    client: openai.OpenAI, engine: ScriptedEngine
) -> None:
    engine.silent = True
    with pytest.raises(openai.InternalServerError, match=r"0\.3 seconds"):
        say(client)
    assert engine.jobs[0].cancelled


def test_text_that_utf8_cannot_say_still_arrives(
    client: openai.OpenAI, engine: ScriptedEngine
) -> None:
    engine.text = "lone \ud800 half"
    assert "lone" in say(client).choices[0].message.content
    assert "lone" in "".join(stream(client)[0])
