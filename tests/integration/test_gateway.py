"""``slm serve --gateway`` as a real process between the real ``openai`` client and a teacher."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from slm_core.capture import drain_spool
from slm_core.dataset import why_unusable
from slm_core.prompting.prefix import PREFIXES
from slm_core.records import Adapter, Example, Stage
from slm_core.serving.exchange import Question
from slm_core.store import open_store
from slm_core.testing.provider import THREE_WORDS, FakeProvider
from slm_core.testing.routes import move
from slm_core.testing.tiny_adapter import build_tiny_adapter
from slm_core.testing.workload import generate

pytestmark = pytest.mark.integration

NANO_TEACHER = Path(__file__).parents[2] / "assets" / "nano-teacher"
CASES = [case for case in generate(5, 12, "test", "structured") if case.calls]
TOOL_CASES = [case for case in generate(5, 4, "test", "toolcall") if case.calls]
WRONG = '{"name": "something_else", "arguments": {}}'
_numbers = itertools.count(1)


class Gateway:
    """A running gateway and what stands around it."""

    def __init__(self, process: subprocess.Popen[str], url: str, home: Path, teacher: Any) -> None:
        self.process = process
        self.url = url
        self.home = home
        self.teacher: FakeProvider = teacher
        self.database = f"sqlite:///{home}/slm.db"

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="mine", max_retries=0, timeout=60)

    def ask(self, model: str, case: Example, conversation: str = "c", **options: Any) -> Any:
        """Return the completion or, of a stream, its chunks: read before the client is closed."""
        with self.client() as client:
            answer = client.chat.completions.create(
                **{
                    "model": model,
                    "messages": [{"role": m.role, "content": m.content} for m in case.prompt],
                    "tools": [
                        {"type": "function", "function": t.model_dump(mode="json")}
                        for t in case.tools
                    ],
                    "tool_choice": "none" if case.track == "structured" else "auto",
                    "max_tokens": 120,
                    "extra_headers": {"x-slm-conversation": conversation},
                    **options,
                }
            )
            return list(answer) if isinstance(answer, openai.Stream) else answer

    def counts(self, agent: str) -> Counter[str]:
        """Return what was counted for an agent, as ``role:outcome``."""
        with open_store(self.database) as store:
            found: Counter[str] = Counter()
            for route in store.routes.list():
                if route.agent_name == agent:
                    totals = store.traffic.totals(route)
                    found.update({f"{role}:{what}": n for (role, what), n in totals.items()})
            return found

    def until(self, agent: str, **counts: int) -> Counter[str]:
        """Wait until so many were counted."""
        wanted = {key.replace("_", ":"): n for key, n in counts.items()}
        eventually(
            lambda: all(self.counts(agent)[k] >= n for k, n in wanted.items()),
            lambda: self.counts(agent),
        )
        return self.counts(agent)

    def move(self, adapter: Adapter, agent: str, to: Stage, share: float | None = None) -> None:
        """Put an adapter on the routes of a new agent, and wait until the gateway knows."""
        with open_store(self.database) as store:
            for stage in (Stage.SHADOW, Stage.CANARY, Stage.LIVE):
                for track in ("structured", "toolcall"):
                    given = {"share": share} if stage is Stage.CANARY else {}
                    move(store, stage, agent, adapter=adapter, track=track, **given)
                if stage is to:
                    break
        eventually(lambda: self.stages(agent) == [[to], [to]], lambda: self.stages(agent))

    def stages(self, agent: str) -> list[list[str]]:
        """Return the stages of an agent's routes as the gateway knows them."""
        routes = httpx.get(f"{self.url}/healthz").json()["routes"]
        return [stages for name, stages in routes.items() if name.startswith(f"{agent}/")]

    @contextmanager
    def stopped_worker(self) -> Iterator[None]:
        """Let the model process hang."""
        (worker,) = psutil.Process(self.process.pid).children()
        worker.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            worker.send_signal(signal.SIGCONT)


def eventually(check: Any, found: Any = lambda: "", seconds: float = 500.0) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, f"it did not come true in time: {found()}"
        time.sleep(0.2)


def read(stream: Any, said: list[str]) -> None:
    for piece in stream:
        said.append((piece.choices[0].delta.content or "") if piece.choices else "")


def is_student(answer: Any) -> bool:
    return (answer.system_fingerprint or "").startswith("slm-")


@pytest.fixture
def agent() -> str:
    """An agent that nobody has asked yet."""
    return f"agent-{next(_numbers)}"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    """An adapter that answers in the right format: it leaves a model alone that does."""
    folder = tmp_path_factory.mktemp("good") / "adapter"
    return build_tiny_adapter(folder, NANO_TEACHER, strength=0.0)


@pytest.fixture(scope="module")
def broken(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    """An adapter that answers at random."""
    return build_tiny_adapter(
        tmp_path_factory.mktemp("broken") / "adapter", tiny_model, PREFIXES["compact"]
    )


@pytest.fixture(scope="module")
def gateway(
    good: Adapter, broken: Adapter, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("gateway")
    answers = {case.prompt[-1].content: case.completion for case in CASES}
    answers[CASES[0].prompt[-1].content] = WRONG
    with open_store(f"sqlite:///{home}/slm.db") as store:
        for adapter in (good, broken):
            store.adapters.save(adapter)
    with FakeProvider(answers) as teacher:
        environment = os.environ | {
            "SLM_HOME": str(home),
            "SLM_SERVER_API_KEY": "mine",
            "AZURE_ENDPOINT": teacher.base_url,
            "AZURE_API_KEY": "the-teachers",
            "SLM_TEACHER_MODEL": "gpt-4o",
        }
        command = [sys.executable, "-m", "slm_core.cli", "serve", "--gateway", "--port", "0"]
        with (home / "log").open("w") as log:
            process = subprocess.Popen(
                [*command, "--workers", "1", "--student-timeout", "15"],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )
        with process:
            try:
                line = process.stdout.readline() if process.stdout else ""
                assert line, (home / "log").read_text()
                yield Gateway(process, json.loads(line)["url"], home, teacher)
            finally:
                process.kill()


def test_without_a_route_everything_passes_as_it_is(gateway: Gateway, agent: str) -> None:
    model, case = f"{agent}/structured", CASES[1]
    answer = gateway.ask(model, case, seed=3, logit_bias={"5": 1})
    assert answer.choices[0].message.content == case.completion
    assert (answer.model, answer.system_fingerprint) == ("gpt-4o-2024-08-06", "fp_1")
    path, sent = gateway.teacher.received[-1]
    assert path == "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21"
    assert (sent["model"], sent["seed"], sent["logit_bias"]) == ("gpt-4o", 3, {"5": 1})
    azure = openai.AzureOpenAI(azure_endpoint=gateway.url, api_key="mine", api_version="2024-10-21")
    say: Any = [{"role": "user", "content": "tool"}]
    with azure, gateway.client() as client:
        called = azure.chat.completions.create(model=model, messages=say)
        assert called.choices[0].message.tool_calls
        pieces = client.chat.completions.create(model=model, messages=say, stream=True)
        assert sum(bool(p.choices and p.choices[0].delta.tool_calls) for p in pieces) == 3
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": "error"}]
            )
        cut = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "break-off"}], stream=True
        )
        said: list[str] = []
        with pytest.raises(openai.APIError, match="fell over"):
            read(cut, said)
        assert "".join(said) == THREE_WORDS
        with pytest.raises(openai.NotFoundError, match="AGENT/TRACK"):
            client.chat.completions.create(model="gpt-4o", messages=say)
        assert httpx.post(f"{gateway.url}/v1/chat/completions", json={}).status_code == 401


def test_in_the_shadow_the_teacher_answers_and_the_student_is_compared(
    gateway: Gateway, agent: str, good: Adapter
) -> None:
    gateway.move(good, agent, Stage.SHADOW)
    for number, case in enumerate(CASES[:4]):
        answer = gateway.ask(f"{agent}/structured", case, f"{agent}-{number}")
        assert not is_student(answer)
        eventually(
            lambda n=number: gateway.counts(agent).total() > n, lambda: gateway.counts(agent)
        )
    counts = gateway.counts(agent)
    assert counts["shadow:agreed"] >= 1, "the nano teacher is right in most cases, not in all"
    assert counts["shadow:disagreed"] >= 1, "the first was answered wrongly by the teacher"
    assert counts.total() == 4


def test_a_hanging_student_slows_nobody_in_the_shadow(
    gateway: Gateway, agent: str, good: Adapter
) -> None:
    gateway.move(good, agent, Stage.SHADOW)
    with gateway.stopped_worker():
        for number in range(40):
            began = time.monotonic()
            gateway.ask(f"{agent}/structured", CASES[1], str(number))
            assert time.monotonic() - began < 10
        gateway.until(agent, shadow_skipped=6)  # those that the queue has no room for


def test_a_canary_has_its_share_of_the_conversations(
    gateway: Gateway, agent: str, good: Adapter
) -> None:
    gateway.move(good, agent, Stage.CANARY, share=0.5)
    model = f"{agent}/structured"
    sides: dict[str, bool] = {}
    for number in range(8):
        conversation = f"talk-{number}"
        place = Question(agent, "structured", conversation, (), ()).place()
        sides[conversation] = place < 0.5
        # Both turns of a conversation have the same side.
        for case in CASES[1:3]:
            assert is_student(gateway.ask(model, case, conversation)) is sides[conversation]
    assert set(sides.values()) == {True, False}
    expected = 2 * sum(sides.values())
    assert gateway.until(agent, answer_answered=expected)["answer:answered"] == expected


def test_conversations_are_spread_by_the_share() -> None:
    places = [Question("a", "toolcall", f"talk-{n}", (), ()).place() for n in range(4000)]
    assert abs(sum(place < 0.1 for place in places) / 4000 - 0.1) < 0.02
    assert {place < 0.1 for place in places} == {True, False}


def test_who_is_live_answers_whole_streamed_and_with_native_calls(
    gateway: Gateway, agent: str, good: Adapter
) -> None:
    gateway.move(good, agent, Stage.LIVE)
    before = len(gateway.teacher.received)
    whole = gateway.ask(f"{agent}/structured", CASES[1])
    assert is_student(whole)
    pieces = gateway.ask(f"{agent}/structured", CASES[1], stream=True)
    assert all(is_student(piece) for piece in pieces)
    said = "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
    assert said == whole.choices[0].message.content
    called = gateway.ask(f"{agent}/toolcall", TOOL_CASES[0])
    assert called.choices[0].finish_reason == "tool_calls"
    assert called.choices[0].message.tool_calls
    assert len(gateway.teacher.received) == before, "the teacher was not asked"


def test_where_the_adapter_fails_the_teacher_answers_and_the_reason_is_counted(
    gateway: Gateway, agent: str, good: Adapter, broken: Adapter
) -> None:
    gateway.move(broken, agent, Stage.LIVE)
    answer = gateway.ask(f"{agent}/structured", CASES[1], max_tokens=16)
    assert answer.choices[0].message.content == CASES[1].completion
    assert not is_student(answer)
    warm = gateway.ask(f"{agent}/structured", CASES[1], temperature=0.7)
    assert not is_student(warm)
    long = CASES[1].model_copy(
        update={"prompt": (CASES[1].prompt[0].model_copy(update={"content": "word " * 50_000}),)}
    )
    assert not is_student(gateway.ask(f"{agent}/structured", long))
    counts = gateway.until(agent, answer_format=1, answer_unsupported=2)
    assert counts == {"answer:format": 1, "answer:unsupported": 2}


def test_a_dead_model_process_costs_a_caller_nothing_but_time(
    gateway: Gateway, agent: str, good: Adapter
) -> None:
    gateway.move(good, agent, Stage.LIVE)
    with gateway.stopped_worker():
        answer = gateway.ask(f"{agent}/structured", CASES[1])
        assert answer.choices[0].message.content == CASES[1].completion
        assert not is_student(answer)
        gateway.until(agent, answer_timeout=1)
    for worker in psutil.Process(gateway.process.pid).children():
        worker.kill()
    # It is replaced, and goes on.
    eventually(lambda: is_student(gateway.ask(f"{agent}/structured", CASES[1])))


def test_students_answers_are_captured_and_never_become_training_data(gateway: Gateway) -> None:
    def stored() -> bool:
        with open_store(gateway.database) as store:
            drain_spool(gateway.home / "spool", store, usable=why_unusable)
            return store.calls.count() >= 20

    eventually(stored)
    with open_store(gateway.database) as store:
        calls = list(store.calls.select())
    sources = Counter(call.source for call in calls)
    assert sources["llm"] >= 5
    assert sources["slm"] >= 5
    for call in calls:
        assert (call.source == "slm") == call.model.startswith("adapter-")
        assert call.source == "llm" or why_unusable(call) is not None
    compared = {c.tags["comparison"] for c in calls if "shadow" in c.tags}
    assert {"agreed", "disagreed"} <= compared
