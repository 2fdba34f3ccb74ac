"""``slm serve`` as a real process on loopback, asked by the real ``openai`` client."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import openai
import psutil
import pytest

from slm_core.prompting.prefix import PREFIXES
from slm_core.records import Adapter, Stage
from slm_core.serving import ServingSpec, promote
from slm_core.store import open_store
from slm_core.testing.records import make_decision
from slm_core.testing.tiny_adapter import build_tiny_adapter

pytestmark = pytest.mark.integration

COMPACT = PREFIXES["compact"]
SERVE = """
import logging, sys
from slm_core.serving import ServingSpec, serve
logging.basicConfig(level=logging.INFO)
serve(ServingSpec.model_validate_json(sys.argv[1]))
"""
LONG: Any = [{"role": "user", "content": "tell me all"}]
OFFER: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


class Server(NamedTuple):
    """A running server."""

    process: subprocess.Popen[str]
    url: str

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def client(self, key: str = "secret") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def health(self) -> dict[str, Any]:
        return httpx.get(f"{self.url}/healthz").json()


def start(log: Path, **spec: Any) -> subprocess.Popen[str]:
    spec = {"port": 0, "api_key": "secret", "workers": 1, "device": "cpu", **spec}
    ServingSpec(**spec)
    with log.open("w") as stderr:
        return subprocess.Popen(
            [sys.executable, "-c", SERVE, json.dumps(spec)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )


@contextmanager
def running(log: Path, **spec: Any) -> Iterator[Server]:
    """Run a server and kill it at the end; its workers must not outlive it."""
    process = start(log, **spec)
    with process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, f"no ready line; the server said:\n{log.read_text()}"
            ready = json.loads(line)
            assert ready["ready"] is True
            server = Server(process, ready["url"])
            yield server
            workers = server.workers() if process.poll() is None else []
            process.kill()
            assert psutil.wait_procs(workers, timeout=10)[1] == []
        finally:
            process.kill()


@pytest.fixture(scope="module")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Adapter]:
    folder = tmp_path_factory.mktemp("adapters")
    return [
        build_tiny_adapter(folder / str(seed), tiny_model, COMPACT, seed=seed) for seed in (1, 2)
    ]


@pytest.fixture(scope="module")
def server(
    tiny_model: Path, adapters: list[Adapter], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log"
    spec = {"model_path": str(tiny_model), "adapter_path": adapters[0].path}
    with running(log, name="nano", workers=2, max_queue=20, **spec) as server:
        yield server


def text(client: openai.OpenAI, model: str = "nano", **options: Any) -> str:
    answer = client.chat.completions.create(
        **{"model": model, "messages": LONG, "max_tokens": 12, **options}
    )
    return answer.choices[0].message.content


def streamed(client: openai.OpenAI, model: str = "nano", **options: Any) -> Iterator[str]:
    options = {"model": model, "messages": LONG, "max_tokens": 12, **options}
    for chunk in client.chat.completions.create(stream=True, **options):
        if chunk.choices and chunk.choices[0].delta.content:
            yield chunk.choices[0].delta.content


def until(condition: Any, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.05)


def test_both_clients_streamed_or_whole_get_the_same_answer(server: Server) -> None:
    azure = openai.AzureOpenAI(
        azure_endpoint=server.url, api_key="secret", api_version="2024-10-21"
    )
    with server.client() as client, azure:
        answers = {
            text(client),
            text(azure),
            text(client, temperature=0),
            text(client, tools=None),
            "".join(streamed(client)),
            "".join(streamed(azure)),
        }
        assert len(answers) == 1
        assert answers != {""}
        assert text(client, tools=[OFFER]) not in answers, "tools are part of the prompt"
        assert text(client, tools=[OFFER]) == text(client, tools=[OFFER], tool_choice="none")


def test_answers_do_not_depend_on_the_load(server: Server) -> None:
    def answer(number: int) -> tuple[str, int]:
        messages: Any = [{"role": "user", "content": f"question {number} " * (number % 7)}]
        with server.client() as client:
            said = client.chat.completions.create(
                model="nano",
                messages=messages,
                max_tokens=25,
            )
        assert said.usage is not None
        return said.choices[0].message.content or "", said.usage.prompt_tokens

    one_by_one = [answer(number) for number in range(30)]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(answer, range(30)))
    assert together == one_by_one
    assert len({said for said, _ in one_by_one}) > 5, "the questions must differ in their answers"


def test_a_killed_worker_is_replaced_and_its_answer_completed(server: Server) -> None:
    with server.client() as client:
        undisturbed = "".join(streamed(client, max_tokens=800))
        pieces = streamed(client, max_tokens=800)
        said = next(pieces)
        before = server.workers()
        for worker in before:
            worker.send_signal(signal.SIGKILL)
        said += "".join(pieces)
        assert said == undisturbed
        assert len(said) > 800
    until(lambda: server.health()["ready"] == 2)
    assert not {worker.pid for worker in before} & {worker.pid for worker in server.workers()}


def test_callers_who_leave_free_their_workers(server: Server) -> None:
    with server.client() as client:
        began = time.monotonic()
        text(client, max_tokens=800)
        whole = time.monotonic() - began
        for _ in range(6):
            with client.chat.completions.create(
                model="nano", messages=LONG, max_tokens=800, stream=True
            ) as stream:
                next(iter(stream))
        began = time.monotonic()
        text(client, max_tokens=1)
        assert time.monotonic() - began < whole


def test_more_callers_than_the_queue_holds_are_told_to_wait(server: Server) -> None:
    gate = threading.Barrier(60)

    def call(_: int) -> httpx.Response:
        gate.wait()
        return httpx.post(
            f"{server.url}/v1/chat/completions",
            headers={"authorization": "Bearer secret"},
            json={"model": "nano", "messages": LONG, "max_tokens": 60},
            timeout=60,
        )

    with ThreadPoolExecutor(60) as pool:
        answers = list(pool.map(call, range(60)))
    waited = [answer for answer in answers if answer.status_code == 503]
    assert {answer.status_code for answer in answers} == {200, 503}
    assert len(answers) - len(waited) >= 20
    assert {answer.headers["retry-after"] for answer in waited} == {"1"}
    assert {answer.json()["error"]["code"] for answer in waited} == {"overloaded"}


def test_a_prompt_of_a_megabyte_is_refused_and_does_no_harm(server: Server) -> None:
    with server.client() as client:
        with pytest.raises(openai.BadRequestError) as caught:
            text(client, messages=[{"role": "user", "content": "word " * 200_000}])
        assert caught.value.code == "context_length_exceeded"
        with pytest.raises(openai.APIStatusError) as larger:
            text(client, messages=[{"role": "user", "content": "word " * 500_000}])
        assert larger.value.status_code == 413
        assert text(client)


def test_refusals(server: Server) -> None:
    with server.client("wrong") as client, pytest.raises(openai.AuthenticationError):
        text(client)
    with server.client() as client:
        with pytest.raises(openai.NotFoundError, match="nano"):
            text(client, model="gpt-4o")
        with pytest.raises(openai.BadRequestError, match="greedy"):
            text(client, temperature=0.7)
    key = {"authorization": "Bearer secret"}
    chat = f"{server.url}/v1/chat/completions"
    assert httpx.post(chat, headers=key, content=b'{"model": ').status_code == 400
    assert httpx.get(f"{server.url}/v2/models", headers=key).status_code == 404
    assert httpx.get(chat, headers=key).status_code == 405


def test_sigterm_finishes_the_answer_and_leaves_nothing(
    tiny_model: Path, adapters: list[Adapter], tmp_path: Path
) -> None:
    spec = {"model_path": str(tiny_model), "adapter_path": adapters[0].path, "name": "nano"}
    with running(tmp_path / "log", **spec) as server:
        workers = server.workers()
        assert len(workers) == 1
        with server.client() as client:
            undisturbed = text(client, max_tokens=600)
            pieces = streamed(client, max_tokens=600)
            said = next(pieces)
            server.process.send_signal(signal.SIGTERM)
            assert said + "".join(pieces) == undisturbed
        assert server.process.wait(timeout=20) == 0
        assert not any(worker.is_running() for worker in workers)
        with pytest.raises(httpx.ConnectError):
            server.health()


def refused(log: Path, **spec: Any) -> str:
    """Return what a server says that must not start."""
    process = start(log, **spec)
    out, _ = process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert out == "", "it must not say that it is ready"
    return log.read_text().splitlines()[-1]


def test_a_port_in_use_is_named(tiny_model: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused(tmp_path / "log", model_path=str(tiny_model), port=port)
    assert "ConfigError" in said
    assert f"Port {port} of 127.0.0.1 is in use" in said


def test_weights_that_are_not_the_listed_ones_are_not_served(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tiny_model, folder)
    (folder / "SHA256SUMS").write_text(f"{'0' * 64}  model.safetensors\n")
    said = refused(tmp_path / "log", model_path=str(folder), workers=2)
    assert "ModelError" in said
    assert "model.safetensors" in said


def test_an_adapter_is_not_served_with_another_prefix(
    tiny_model: Path, adapters: list[Adapter], tmp_path: Path
) -> None:
    said = refused(
        tmp_path / "log",
        model_path=str(tiny_model),
        adapter_path=adapters[0].path,
        cep="universal",
    )
    assert "PromptMismatch" in said
    assert "prefix compact, not universal" in said


def test_routes_are_followed_without_a_restart(adapters: list[Adapter], tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/slm.db"

    def go_live(adapter: Adapter) -> None:
        with open_store(url) as store:
            store.adapters.save(adapter)
            promote(
                store,
                adapter=adapter,
                agent_name="desk",
                track="toolcall",
                decision=make_decision(adapter_id=adapter.id),
                who="ann",
                reason="test",
                to_stage=Stage.LIVE,
                auto_approve=True,
            )

    go_live(adapters[0])
    with running(tmp_path / "log", routes_url=url) as server, server.client() as client:
        assert [model.id for model in client.models.list()] == ["desk/toolcall"]
        first = text(client, "desk/toolcall")
        going = streamed(client, "desk/toolcall", max_tokens=300)
        said = next(going)
        pid = server.workers()[0].pid
        go_live(adapters[1])
        promoted = time.monotonic()
        said += "".join(going)
        until(lambda: text(client, "desk/toolcall") != first)
        assert time.monotonic() - promoted < 10
        assert said.startswith(first), "an answer under way is finished by who began it"
        assert server.workers()[0].pid == pid
