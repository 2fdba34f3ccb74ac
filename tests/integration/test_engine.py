"""Real worker processes: models come and go, and a process that dies twice is not hidden."""

from __future__ import annotations

import logging
import os
import queue
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from slm_core.backends.base import Completion, Request
from slm_core.errors import BackendUnavailable, ModelError, Overloaded
from slm_core.records import Message
from slm_core.serving.engine import Engine
from slm_core.serving.keeper import Job
from slm_core.serving.messages import Delta, Done, Event, Failed, ModelSource

pytestmark = pytest.mark.integration

QUESTION = Request((Message(role="user", content="tell me all"),))


@pytest.fixture(scope="module")
def sources(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[ModelSource]:
    from slm_core.testing.tiny_model import build_tiny_model

    other = build_tiny_model(tmp_path_factory.mktemp("models") / "other", seed=3)
    return [ModelSource(str(tiny_model)), ModelSource(str(other), variant="compact")]


@pytest.fixture(scope="module")
def engine(sources: list[ModelSource]) -> Iterator[Engine]:
    engine = Engine(workers=1, max_queue=2, models_per_worker=1, device="cpu")
    engine.start(sources[:1])
    yield engine
    engine.close()
    assert worker_pids() == []


def worker_pids() -> list[int]:
    children = psutil.Process().children()
    return [one.pid for one in children if "slm_core.serving.worker" in one.cmdline()]


class Listener:
    """Collects what the engine says about one request."""

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def end(self) -> Event:
        while isinstance(event := self.events.get(timeout=60), Delta):
            pass
        return event


def submit(engine: Engine, source: ModelSource, **options: Any) -> tuple[Job, Listener]:
    listener = Listener()
    options = {"max_tokens": 5, **options}
    job = engine.submit(source, QUESTION, on_event=listener.events.put, **options)
    return job, listener


def answer(engine: Engine, source: ModelSource, **options: Any) -> Completion:
    event = submit(engine, source, **options)[1].end()
    assert isinstance(event, Done)
    assert event.completion is not None
    return event.completion


def test_models_take_turns_in_a_worker_that_holds_one(
    engine: Engine, sources: list[ModelSource]
) -> None:
    first = [answer(engine, source)._replace(seconds=0) for source in sources]
    again = [answer(engine, source)._replace(seconds=0) for source in sources]
    assert first == again
    assert first[0].prompt_tokens < first[1].prompt_tokens, "the second has a prefix"


def test_a_model_that_cannot_be_loaded_harms_nobody(
    engine: Engine, sources: list[ModelSource]
) -> None:
    nowhere = ModelSource("/nowhere")
    with pytest.raises(ModelError, match="/nowhere"):
        engine.load(nowhere, 60)
    failed = submit(engine, nowhere)[1].end()
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, ModelError)
    engine.load(sources[0], 60)
    assert answer(engine, sources[0]).error is None


def test_a_full_queue_refuses_and_cancelled_requests_make_room(
    engine: Engine, sources: list[ModelSource]
) -> None:
    running, listener = submit(engine, sources[0], max_tokens=900, stream=True)
    assert isinstance(listener.events.get(timeout=60), Delta)
    waiting = [submit(engine, sources[0]) for _ in range(2)]
    assert engine.health().waiting == 2
    with pytest.raises(Overloaded, match="try again"):
        submit(engine, sources[0])
    for job in (running, waiting[0][0]):
        job.cancel()
    assert isinstance(waiting[1][1].end(), Done)
    assert waiting[0][1].events.empty(), "nothing is said about a cancelled request"


def test_a_request_that_costs_two_processes_fails_and_the_engine_recovers(
    engine: Engine, sources: list[ModelSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, listener = submit(engine, sources[0], max_tokens=900, stream=True)
    assert isinstance(listener.events.get(timeout=60), Delta)
    (pid,) = worker_pids()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/bin/false")  # the next process dies at once
        os.kill(pid, signal.SIGKILL)
        failed = listener.end()
        assert isinstance(failed, Failed)
        assert isinstance(failed.error, BackendUnavailable)
    deadline = time.monotonic() + 60
    while engine.health().ready == 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert answer(engine, sources[0]).error is None


def test_a_broken_model_stops_the_start_and_leaves_no_process() -> None:
    before = worker_pids()
    engine = Engine(workers=2, device="cpu")
    with pytest.raises(ModelError, match="/nowhere"):
        engine.start([ModelSource("/nowhere")])
    assert worker_pids() == before


def test_an_idle_process_loads_what_another_has_proved(
    sources: list[ModelSource], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    copy = Path(shutil.copytree(sources[0].model_path, tmp_path / "copy"))
    source = ModelSource(str(copy))
    engine = Engine(workers=2, models_per_worker=1, device="cpu")
    engine.start([])
    try:
        engine.load(source, 60)
        engine.keep([source])
        deadline = time.monotonic() + 60
        while "worker loaded ahead" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        copy.rename(tmp_path / "gone")
        asked = [submit(engine, source, max_tokens=200)[1] for _ in range(4)]
        assert [type(one.end()) for one in asked] == [Done] * 4
        assert caplog.text.count("worker loaded ahead") == 1
    finally:
        engine.close()
