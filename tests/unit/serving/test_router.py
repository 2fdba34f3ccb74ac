"""The live adapter answers, rendered as in training; a new one takes over once it is proved."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from slm_core.errors import ModelError, PromptMismatch, RecordNotFound
from slm_core.prompting.prefix import PREFIXES
from slm_core.prompting.render import Renderer
from slm_core.records import Adapter, Stage
from slm_core.serving import Router, ask, promote
from slm_core.serving.messages import ModelSource, source_of
from slm_core.serving.router import LiveModels
from slm_core.store import Store, open_store
from slm_core.testing.records import make_adapter, make_decision, make_example
from slm_core.testing.tiny_adapter import build_tiny_adapter

COMPACT = PREFIXES["compact"]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(f"sqlite:///{tmp_path}/slm.db") as store:
        yield store


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    return build_tiny_adapter(tmp_path_factory.mktemp("adapter") / "a", tiny_model, COMPACT)


def go_live(store: Store, adapter: Adapter, agent: str = "desk") -> None:
    store.adapters.save(adapter)
    promote(
        store,
        adapter=adapter,
        agent_name=agent,
        track="toolcall",
        decision=make_decision(adapter_id=adapter.id),
        who="ann",
        reason="test",
        to_stage=Stage.LIVE,
        auto_approve=True,
    )


def test_the_live_adapter_is_found(store: Store, adapter: Adapter) -> None:
    assert Router(store).resolve("desk", "toolcall") is None
    go_live(store, adapter)
    assert Router(store).resolve("desk", "toolcall") == adapter
    assert Router(store).resolve("desk", "structured") is None
    assert Router(store).live() == {"desk/toolcall": adapter}


def test_asking_renders_the_prompt_of_training(
    store: Store, adapter: Adapter, tiny_model: Path
) -> None:
    go_live(store, adapter)
    row = make_example()
    answer = ask(store, "desk", "toolcall", row.prompt, row.tools, max_tokens=8, threads=1)
    trained = Renderer(AutoTokenizer.from_pretrained(tiny_model), COMPACT).example(
        row.prompt, row.tools, row.completion
    )
    assert answer.completion.prompt_tokens == trained.supervised.index(True)
    assert answer.adapter == adapter
    assert answer.completion.completion_tokens == 8
    assert answer.completion.text


def test_asking_when_nobody_is_live_says_so(store: Store) -> None:
    with pytest.raises(RecordNotFound, match="desk/toolcall; the teacher answers"):
        ask(store, "desk", "toolcall", make_example().prompt)


def test_asking_refuses_another_base(store: Store, adapter: Adapter, tmp_path: Path) -> None:
    from slm_core.testing.tiny_model import build_tiny_model

    go_live(store, adapter)
    other = build_tiny_model(tmp_path / "other", seed=9)
    with pytest.raises(ModelError, match="other base weights"):
        ask(store, "desk", "toolcall", make_example().prompt, base_model=str(other))


def test_an_unknown_prefix_is_refused() -> None:
    with pytest.raises(PromptMismatch, match="cep-77aa01c2d3e4f509"):
        source_of(make_adapter())
    assert source_of(make_adapter(cep_id=None)).variant is None
    assert source_of(make_adapter(cep_id=COMPACT.id), "/base")[:3] == (
        "/base",
        make_adapter().path,
        "compact",
    )


class Loader:
    """Stands for the engine: remembers what it loaded, refuses what it is told to."""

    def __init__(self) -> None:
        self.loaded: list[str | None] = []
        self.broken: set[str] = set()
        self.meanwhile: Callable[[str | None], None] = lambda adapter_id: None

    def __call__(self, source: ModelSource) -> None:
        self.meanwhile(source.adapter_id)
        if source.adapter_id in self.broken:
            raise ModelError("damaged")
        self.loaded.append(source.adapter_id)


def bare(name: str) -> Adapter:
    return make_adapter(id=f"adapter-{name}", cep_id=None)


def retire(store: Store, adapter: Adapter, agent: str = "desk") -> None:
    promote(
        store,
        adapter=adapter,
        agent_name=agent,
        track="toolcall",
        decision=None,
        who="ann",
        reason="test",
        to_stage=Stage.RETIRED,
    )


def serving(models: LiveModels, agent: str = "desk") -> str | None:
    source = models.find(f"{agent}/toolcall")
    return source.adapter_id if source else None


def test_models_follow_the_routes(store: Store) -> None:
    load = Loader()
    models = LiveModels(store, load)
    models.refresh()
    assert list(models.names()) == []
    go_live(store, bare("a"))
    models.refresh()
    models.refresh()
    assert list(models.names()) == ["desk/toolcall"]
    assert serving(models) == "adapter-a"
    go_live(store, bare("b"))
    models.refresh()
    assert serving(models) == "adapter-b"
    assert load.loaded == ["adapter-a", "adapter-b"], "each is proved once"


def test_a_retired_route_is_gone(store: Store) -> None:
    models = LiveModels(store, Loader())
    go_live(store, bare("a"))
    models.refresh()
    retire(store, bare("a"))
    models.refresh()
    assert serving(models) is None


def test_an_adapter_that_cannot_be_served_does_not_take_over(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    load = Loader()
    load.broken.add("adapter-b")
    models = LiveModels(store, load)
    go_live(store, bare("a"))
    models.refresh()
    go_live(store, bare("b"))
    models.refresh()
    models.refresh()
    assert serving(models) == "adapter-a"
    assert caplog.text.count("adapter-b cannot be served: damaged") == 1, "said once"
    load.broken.clear()
    models.refresh()
    assert serving(models) == "adapter-b"


def test_a_record_that_cannot_be_read_does_not_end_the_following(store: Store) -> None:
    load = Loader()
    models = LiveModels(store, load, poll_seconds=0.01)
    models.start()
    read = threading.Event()

    def of_a_newer_version(_: str | None) -> None:
        read.set()
        raise ValueError("Extra inputs are not permitted")

    try:
        load.meanwhile = of_a_newer_version
        go_live(store, bare("a"))
        assert read.wait(20)
        load.meanwhile = lambda _: None
        deadline = time.monotonic() + 20
        while serving(models) != "adapter-a":
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        models.close()


def test_no_route_waits_for_the_loading_of_another(store: Store) -> None:
    load = Loader()
    models = LiveModels(store, load)
    for name in ("a", "b"):
        go_live(store, bare(name), f"agent-{name}")
    models.refresh()
    retire(store, bare("a"), "agent-a")
    for name in ("c", "d", "e"):
        go_live(store, bare(name), f"agent-{name}")
    seen: dict[str | None, list[str | None]] = {}

    def while_loading(adapter_id: str | None) -> None:
        seen[adapter_id] = [serving(models, f"agent-{name}") for name in "abcde"]
        if adapter_id == "adapter-c":
            retire(store, bare("b"), "agent-b")
            retire(store, bare("e"), "agent-e")

    load.meanwhile = while_loading
    models.refresh()
    assert seen == {
        "adapter-c": [None, "adapter-b", None, None, None],
        "adapter-d": [None, None, "adapter-c", None, None],
    }
    assert models.names() == ["agent-c/toolcall", "agent-d/toolcall"]
