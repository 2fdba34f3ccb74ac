"""A local model answers in order, repeatably, and refuses what does not fit together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from slm_core.backends.adapter_folder import read_adapter
from slm_core.backends.base import Backend, Completion, Request
from slm_core.backends.local import LocalModel
from slm_core.errors import ConfigError, ModelError, PromptMismatch, PromptTooLong
from slm_core.prompting.prefix import PREFIXES
from slm_core.prompting.render import Renderer
from slm_core.records import Adapter, Message
from slm_core.testing.records import WEATHER, make_example
from slm_core.testing.tiny_adapter import build_tiny_adapter

COMPACT = PREFIXES["compact"]


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    return build_tiny_adapter(tmp_path_factory.mktemp("adapter") / "a", tiny_model, COMPACT)


@pytest.fixture(scope="module")
def model(tiny_model: Path, adapter: Adapter) -> LocalModel:
    return LocalModel(tiny_model, adapter.path, COMPACT, batch_size=4, threads=1)


def ask(text: str) -> Request:
    return Request((Message(role="user", content=text),), (WEATHER,))


REQUESTS = [ask("word " * (n * 7 % 40)) for n in range(11)]


def test_it_is_a_backend(model: LocalModel) -> None:
    assert isinstance(model, Backend)


def test_answers_come_in_the_order_of_the_requests(model: LocalModel) -> None:
    together = list(model.complete(REQUESTS, max_tokens=12))
    alone = [next(model.complete([request], max_tokens=12)) for request in REQUESTS]
    assert [c.prompt_tokens for c in together] == [c.prompt_tokens for c in alone]
    assert [c.text for c in together] == [c.text for c in alone]
    assert len({c.text for c in together}) > 1


def test_the_same_list_gives_the_same_answers(model: LocalModel) -> None:
    def answers() -> list[Completion]:
        return [c._replace(seconds=0.0) for c in model.complete(REQUESTS, max_tokens=30)]

    assert answers() == answers()


def test_max_tokens_ends_an_answer(model: LocalModel) -> None:
    answer = next(model.complete([ask("hello")], max_tokens=3))
    assert (answer.finish_reason, answer.completion_tokens) == ("length", 3)
    assert answer.error is None


def test_a_prompt_that_does_not_fit_is_an_answer_with_an_error(tiny_model: Path) -> None:
    model = LocalModel(tiny_model, max_context=200, threads=1)
    short, long, after = model.complete([ask("a"), ask("b " * 300), ask("c")], max_tokens=500)
    assert long.finish_reason == "error"
    assert long.text == ""
    assert "context=200" in (long.error or "")
    assert (long.permanent, short.permanent) == (True, False)
    assert short.error is None
    # The context bounds prompt and answer together.
    assert after.prompt_tokens + after.completion_tokens <= 200
    with pytest.raises(PromptTooLong):
        next(model.stream(ask("b " * 300), 5))


def test_a_stream_says_what_a_completion_says(model: LocalModel) -> None:
    whole = next(model.complete([ask("hello")], max_tokens=40))
    pieces: list[str] = []
    stream = model.stream(ask("hello"), 40)
    try:
        while True:
            pieces.append(next(stream))
    except StopIteration as end:
        final: Completion = end.value
    assert len(pieces) > 5
    assert "".join(pieces) == whole.text
    assert final._replace(seconds=0.0) == whole._replace(seconds=0.0)


def test_a_stream_stops_at_a_stop_string(model: LocalModel) -> None:
    whole = next(model.complete([ask("hello")], max_tokens=40))
    stop = whole.text[20:23]
    stream = model.stream(ask("hello"), 40, [stop])
    pieces = []
    try:
        while True:
            pieces.append(next(stream))
    except StopIteration as end:
        final: Completion = end.value
    assert "".join(pieces) == final.text == whole.text.partition(stop)[0]
    assert final.finish_reason == "stop"
    assert final.completion_tokens < whole.completion_tokens


def test_the_model_reads_the_ids_of_the_training_row(tiny_model: Path, adapter: Adapter) -> None:
    model = LocalModel(tiny_model, adapter.path, COMPACT)
    row = make_example()
    trained = Renderer(AutoTokenizer.from_pretrained(tiny_model), COMPACT).example(
        row.prompt, row.tools, row.completion
    )
    asked = model.prompt_ids(Request(row.prompt, row.tools))
    assert asked == trained.ids[: len(asked)]
    assert not any(trained.supervised[: len(asked)])
    assert all(trained.supervised[len(asked) :])


def test_an_adapter_changes_the_answers(tiny_model: Path, adapter: Adapter) -> None:
    bare, adapted = (LocalModel(tiny_model, path, COMPACT) for path in (None, adapter.path))
    assert adapted.model == f"tiny+{adapter.id}"
    before, after = (next(m.complete([ask("hello")], max_tokens=20)) for m in (bare, adapted))
    assert before.text != after.text


@pytest.mark.parametrize("prefix", [None, PREFIXES["universal"]])
def test_an_adapter_refuses_another_prompt(
    tiny_model: Path, adapter: Adapter, prefix: object
) -> None:
    with pytest.raises(PromptMismatch, match=COMPACT.id):
        LocalModel(tiny_model, adapter.path, prefix)  # type: ignore[arg-type]


def test_an_adapter_refuses_another_base(adapter: Adapter, tmp_path: Path) -> None:
    from slm_core.testing.tiny_model import build_tiny_model

    other = build_tiny_model(tmp_path / "other", seed=5)
    with pytest.raises(ModelError, match="other base weights"):
        LocalModel(other, adapter.path, COMPACT)


def test_changed_base_weights_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tiny_model, folder)
    (folder / "SHA256SUMS").write_text(f"{'0' * 64}  model.safetensors\n")
    with pytest.raises(ModelError, match=r"model\.safetensors is not the file"):
        LocalModel(folder)


def test_base_weights_with_a_tensor_missing_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    # No list of hashes, as models come from the hub: only loading can notice.
    folder = shutil.copytree(tiny_model, tmp_path / "gap")
    tensors = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in tensors, "tied weights, which are no gap, are not tried"
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lack some") as caught:
        LocalModel(folder)
    assert caught.value.context["missing"] == ["model.layers.1.mlp.up_proj.weight"]


def test_a_damaged_adapter_is_refused(adapter: Adapter, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(adapter.path, folder)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00\x01")
    with pytest.raises(ModelError, match="not the file that was trained"):
        read_adapter(folder)
    weights.unlink()
    with pytest.raises(ModelError, match=r"lacks adapter_model\.safetensors"):
        read_adapter(folder)


def test_a_record_of_something_else_is_refused(adapter: Adapter, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(adapter.path, folder)
    (folder / "slm_adapter.json").write_text(json.dumps({"id": "x"}))
    with pytest.raises(ModelError, match="not an adapter's record"):
        read_adapter(folder)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        LocalModel(tmp_path / "nowhere")


def test_a_batch_of_none_is_refused(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        LocalModel(tiny_model, batch_size=0)
