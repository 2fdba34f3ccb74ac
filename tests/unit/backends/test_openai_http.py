"""The HTTP backend against a scripted server: order, retries, and errors that say what to check."""

from __future__ import annotations

import inspect
import json
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from slm_core.backends.base import Backend, Request
from slm_core.backends.openai_http import FAILURES, OpenAiBackend, failure_kind
from slm_core.errors import BackendUnavailable, ConfigError
from slm_core.records import Message, ToolUse
from slm_core.testing.loopback import LoopbackHandler, LoopbackServer
from slm_core.testing.records import WEATHER

Reply = tuple[int, Any]


def chat(content: str | None = "ok", **message: Any) -> dict[str, Any]:
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "finish_reason": "tool_calls" if "tool_calls" in message else "stop",
                "message": {"role": "assistant", "content": content, **message},
            }
        ],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 10, "total_tokens": 1010},
    }


def native(*calls: tuple[str, str]) -> list[dict[str, Any]]:
    return [
        {"id": f"i{at}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for at, (name, arguments) in enumerate(calls)
    ]


class Script(LoopbackServer):
    """Answers by a function of the last message; keeps what was asked."""

    def __init__(self) -> None:
        super().__init__(Handler)
        self.reply: Callable[[str], Reply] = lambda said: (200, chat(said.upper()))
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.active = self.peak = 0
        self.lock = threading.Lock()


class Handler(LoopbackHandler):
    owner: Script
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        script, body = self.owner, json.loads(self.body())
        with script.lock:
            script.bodies.append(body)
            script.paths.append(self.path)
            script.headers.append({k.lower(): v for k, v in self.headers.items()})
            script.active += 1
            script.peak = max(script.peak, script.active)
        status, said = script.reply(body["messages"][-1]["content"])
        with script.lock:
            script.active -= 1
        self.answer(status, said, retry_after_ms="1")


@pytest.fixture
def script() -> Iterator[Script]:
    with Script() as script:
        yield script


@pytest.fixture
def url(script: Script) -> str:
    return script.base_url


@pytest.fixture
def backend(url: str) -> Iterator[OpenAiBackend]:
    backend = OpenAiBackend("m", api_key="k", base_url=f"{url}/v1", usd_per_million=(2.5, 10.0))
    yield backend
    backend.close()


def ask(*texts: str) -> list[Request]:
    return [Request((Message(role="user", content=text),)) for text in texts]


def test_answers_come_in_order_while_requests_overlap(
    backend: OpenAiBackend, script: Script
) -> None:
    def reply(said: str) -> Reply:
        time.sleep(0.05 if int(said) % 5 == 0 else 0.0)
        return 200, chat(f"answer {said}")

    script.reply = reply
    assert isinstance(backend, Backend)
    answers = list(backend.complete(ask(*map(str, range(30))), max_tokens=9))
    assert [a.text for a in answers] == [f"answer {n}" for n in range(30)]
    assert 1 < script.peak <= 8
    assert all(b["temperature"] == 0 and b["max_tokens"] == 9 for b in script.bodies)


def test_tokens_and_cost_are_the_servers(backend: OpenAiBackend) -> None:
    (answer,) = backend.complete(ask("hi"), max_tokens=5)
    assert (answer.prompt_tokens, answer.completion_tokens) == (1000, 10)
    assert answer.cost_nanousd == 2_600_000  # 1000 x 2.5 + 10 x 10 millionths of a dollar


def test_without_a_price_the_cost_is_unknown(url: str) -> None:
    backend = OpenAiBackend("m", api_key="k", base_url=url)
    (answer,) = backend.complete(ask("hi"), max_tokens=5)
    assert answer.cost_nanousd is None


def test_native_calls_become_text_of_the_toolcall_format(
    backend: OpenAiBackend, script: Script
) -> None:
    calls = native(("get_weather", '{"city":"Zürich","days":2}'), ("get_weather", '{"city":'))
    script.reply = lambda said: (200, chat(None, tool_calls=calls))
    request = Request((Message(role="user", content="w"),), (WEATHER,))
    (answer,) = backend.complete([request], max_tokens=5)
    assert answer.text == (
        '<tool_call name="get_weather">{"city": "Zürich", "days": 2}</tool_call>\n'
        '<tool_call name="get_weather">{"city":</tool_call>'
    )
    assert answer.finish_reason == "tool_calls"
    body = script.bodies[0]
    assert body["tool_choice"] == "auto"
    assert body["tools"][0]["function"]["name"] == "get_weather"


def test_text_can_be_asked_for_instead(backend: OpenAiBackend, script: Script) -> None:
    request = Request((Message(role="user", content="w"),), (WEATHER,), native_tools=False)
    list(backend.complete([request], max_tokens=5))
    assert script.bodies[0]["tool_choice"] == "none"


def test_results_of_tools_are_matched_to_their_calls(
    backend: OpenAiBackend, script: Script
) -> None:
    prompt = (
        Message(role="assistant", content="", tool_calls=(ToolUse(name="f", arguments={}),)),
        Message(role="tool", content="7"),
        Message(role="tool", content="of no call"),
    )
    list(backend.complete([Request(prompt)], max_tokens=5))
    called, result, stray = script.bodies[0]["messages"]
    assert result["tool_call_id"] == called["tool_calls"][0]["id"]
    assert stray == {"role": "user", "content": "of no call"}


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_what_may_pass_is_tried_again(backend: OpenAiBackend, script: Script, status: int) -> None:
    replies = iter([(status, {}), (status, {}), (200, chat("at last"))])
    script.reply = lambda said: next(replies)
    (answer,) = backend.complete(ask("x"), max_tokens=5)
    assert (answer.text, answer.error) == ("at last", None)


def test_what_does_not_pass_is_the_rows_error_alone(backend: OpenAiBackend, script: Script) -> None:
    script.reply = lambda said: (429, {}) if said == "bad" else (200, chat())
    good, bad, after = backend.complete(ask("a", "bad", "b"), max_tokens=5)
    assert (good.text, after.text) == ("ok", "ok")
    assert (bad.text, bad.finish_reason) == ("", "error")
    assert "RateLimitError" in (bad.error or "")
    assert not bad.permanent
    assert sum(b["messages"][0]["content"] == "bad" for b in script.bodies) == 5


def refusal(param: str, code: str, message: str) -> Reply:
    kind = "invalid_request_error"
    return 400, {"error": {"message": message, "type": kind, "param": param, "code": code}}


NO_LIMIT = refusal(
    "max_tokens",
    "unsupported_parameter",
    "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
    "'max_completion_tokens' instead.",
)
NO_TEMPERATURE = refusal(
    "temperature",
    "unsupported_value",
    "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) "
    "value is supported.",
)


def reasoning(body: dict[str, Any]) -> Reply:
    """Answer as a reasoning model does, which names one field at a time."""
    if "max_tokens" in body:
        return NO_LIMIT
    return NO_TEMPERATURE if "temperature" in body else (200, chat())


def test_a_reasoning_model_is_asked_in_its_own_words(
    url: str, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    backend = OpenAiBackend("o3", api_key="k", base_url=url, max_retries=0)
    script.reply = lambda said: reasoning(script.bodies[-1])
    (first,) = backend.complete(ask("a"), max_tokens=9)
    assert (first.text, first.error) == ("ok", None)
    said = [body.keys() - {"model", "messages"} for body in script.bodies]
    assert said == [
        {"max_tokens", "temperature"},
        {"max_completion_tokens", "temperature"},
        {"max_completion_tokens"},
    ]
    assert script.bodies[-1]["max_completion_tokens"] == 9
    # It remembers, and tells once.
    assert [a.text for a in backend.complete(ask("b", "c"), max_tokens=9)] == ["ok", "ok"]
    backend.close()
    assert len(script.bodies) == 5
    warned = [record.getMessage() for record in caplog.records if record.name.startswith("slm")]
    assert len(warned) == 2
    assert "max_completion_tokens" in warned[0]
    assert "not deterministic" in warned[1]


def test_threads_that_are_refused_together_all_ask_again(
    url: str, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    together = threading.Barrier(4)

    def reply(said: str) -> Reply:
        with script.lock:
            body = next(b for b in script.bodies[::-1] if b["messages"][-1]["content"] == said)
        if "max_tokens" in body:
            together.wait(timeout=10)
        return reasoning(body)

    script.reply = reply
    backend = OpenAiBackend("o3", api_key="k", base_url=url, max_retries=0, concurrency=4)
    answers = list(backend.complete(ask(*"abcd"), max_tokens=9))
    backend.close()
    assert [(a.text, a.error) for a in answers] == [("ok", None)] * 4
    assert sum("not deterministic" in record.getMessage() for record in caplog.records) == 1


def test_a_temperature_alone_can_be_left_out(backend: OpenAiBackend, script: Script) -> None:
    replies = iter([NO_TEMPERATURE, (200, chat())])
    script.reply = lambda said: next(replies)
    (answer,) = backend.complete(ask("a"), max_tokens=9)
    assert answer.text == "ok"
    assert script.bodies[1].keys() == {"model", "messages", "max_tokens"}


@pytest.mark.parametrize(
    ("reply", "asked"),
    [
        (refusal("max_tokens", "invalid_value", "max_tokens is too large: 9"), 1),
        (refusal("tools", "unsupported_parameter", "Unsupported parameter: 'tools'"), 1),
        (NO_LIMIT, 2),  # refused also in the other words
    ],
)
def test_a_refusal_that_no_wording_mends_is_the_rows_error(
    backend: OpenAiBackend, script: Script, reply: Reply, asked: int
) -> None:
    script.reply = lambda said: reply
    (answer,) = backend.complete(ask("a"), max_tokens=9)
    assert "BadRequestError" in (answer.error or "")
    assert answer.permanent
    assert len(script.bodies) == asked


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_prompt_is_not_tried_again(
    backend: OpenAiBackend, script: Script, status: int
) -> None:
    script.reply = lambda said: (status, {"error": {"message": "too long"}})
    (answer,) = backend.complete(ask("x"), max_tokens=5)
    assert "too long" in (answer.error or "")
    assert answer.permanent
    assert len(script.bodies) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"<html>login</html>",
        chat() | {"choices": []},
        chat() | {"choices": [{"index": 0}]},
        b"null",
    ],
)
def test_nonsense_with_status_200_is_the_rows_error(
    backend: OpenAiBackend, script: Script, body: Any
) -> None:
    script.reply = lambda said: (200, body)
    (answer,) = backend.complete(ask("x"), max_tokens=5)
    assert answer.finish_reason == "error"
    assert answer.error
    assert not answer.permanent


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_what_may_pass_is_no_refusal(url: str, script: Script, status: int) -> None:
    backend = OpenAiBackend("m", api_key="k", base_url=url, max_retries=0)
    script.reply = lambda said: (status, {})
    (answer,) = backend.complete(ask("x"), max_tokens=5)
    backend.close()
    assert answer.error
    assert not answer.permanent


@pytest.mark.parametrize(
    ("status", "body", "setting"),
    [
        (401, {}, "OPENAI_API_KEY"),
        (403, {}, "OPENAI_API_KEY"),
        (404, {}, "SLM_TEACHER_MODEL"),
        (429, {"error": {"code": "insufficient_quota", "message": "pay"}}, "OPENAI_API_KEY"),
    ],
)
def test_what_fails_every_row_names_the_setting(
    url: str, script: Script, status: int, body: dict[str, Any], setting: str
) -> None:
    backend = OpenAiBackend("m", api_key="k", base_url=url, max_retries=0)
    script.reply = lambda said: (status, body)
    with pytest.raises(ConfigError, match=setting):
        list(backend.complete(ask(*"abcdefghij"), max_tokens=5))


@pytest.mark.parametrize("status", [401, 400])
def test_a_key_that_the_server_repeats_is_not_told(url: str, script: Script, status: int) -> None:
    key = "sk-0123456789"
    refusal = {"error": {"message": f"{'no ' * 95}Incorrect API key provided: {key}"}}
    script.reply = lambda said: (status, refusal)
    backend = OpenAiBackend("m", api_key=key, base_url=url)
    if status == 400:
        (answer,) = backend.complete(ask("x"), max_tokens=5)
        told = str(answer)
    else:
        with pytest.raises(ConfigError) as raised:
            list(backend.complete(ask("x"), max_tokens=5))
        told = "".join(traceback.format_exception(raised.value))
    backend.close()
    assert "Error code" in told
    assert "sk-0" not in told  # nor a part of it, where the message is cut


def test_azure_is_asked_by_deployment_and_version(url: str, script: Script) -> None:
    backend = OpenAiBackend("dep", api_key="k", azure_endpoint=url, api_version="2024-10-21")
    list(backend.complete(ask("x"), max_tokens=5))
    assert script.paths == ["/openai/deployments/dep/chat/completions?api-version=2024-10-21"]
    assert script.headers[0]["api-key"] == "k"
    script.reply = lambda said: (401, {})
    with pytest.raises(ConfigError, match="AZURE_API_KEY"):
        list(backend.complete(ask("x"), max_tokens=5))


def test_a_server_that_is_not_there(script: Script) -> None:
    backend = OpenAiBackend("m", api_key="k", base_url="http://127.0.0.1:9/v1", max_retries=0)
    with pytest.raises(BackendUnavailable, match=r"127\.0\.0\.1:9") as caught:
        list(backend.complete(ask("x"), max_tokens=5))
    assert caught.value.retryable


def test_a_key_that_cannot_be_sent_names_the_setting(url: str) -> None:
    backend = OpenAiBackend("m", api_key="two\nlines", base_url=url, max_retries=0)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        list(backend.complete(ask("x"), max_tokens=5))


def test_missing_values_are_listed_together() -> None:
    with pytest.raises(ConfigError) as caught:
        OpenAiBackend("m", api_key="", azure_endpoint="http://127.0.0.1", concurrency=0)
    text = str(caught.value)
    assert all(word in text for word in ("AZURE_API_KEY", "AZURE_API_VERSION", "concurrency"))


def test_every_foreign_exception_is_mapped() -> None:
    names = ("openai", "openai._exceptions", "httpx", "httpx2", "json")
    libraries = [pytest.importorskip(name) for name in names]
    foreign = {
        kind
        for library in libraries
        # Not getmembers: it loads all of openai, a second's work.
        for kind in list(vars(library).values())
        if inspect.isclass(kind) and issubclass(kind, Exception)
    }
    assert len(foreign) > 60
    assert [kind for kind in foreign if failure_kind(kind.__new__(kind)) is None] == []
    assert failure_kind(KeyError()) is None
    # No entry is dead.
    assert set(FAILURES) <= {cls.__name__ for kind in foreign for cls in kind.__mro__}
