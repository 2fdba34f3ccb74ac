from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from slm_core.errors import ConfigError, ModelError
from slm_core.training import TrainingSpec
from slm_core.training.engine.student import load_student


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The tiny model is too small to share out among threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_spec(model: Path, **changes: Any) -> TrainingSpec:
    values = {"base_model": str(model), "max_length": 512, "device": "cpu"}
    return TrainingSpec(**(values | changes))


def test_every_linear_layer_but_the_output_is_adapted(tiny_model: Path) -> None:
    student = load_student(tiny_model, make_spec(tiny_model, lora_r=4))
    # 2 layers of 7 linear maps with A and B each.
    assert len(student.trainable) == 2 * 7 * 2
    assert not any("lm_head" in name for name in student.trainable)


def test_only_the_named_layers_are_adapted(tiny_model: Path) -> None:
    student = load_student(tiny_model, make_spec(tiny_model, lora_target=("q_proj", "v_proj")))
    assert {name.split(".")[-4] for name in student.trainable} == {"q_proj", "v_proj"}


def test_the_seed_fixes_the_first_weights(tiny_model: Path) -> None:
    def first(seed: int) -> torch.Tensor:
        torch.rand(seed + 3)
        return next(
            iter(load_student(tiny_model, make_spec(tiny_model, seed=seed)).trainable.values())
        )

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_a_new_adapter_changes_no_answer(tiny_model: Path) -> None:
    student = load_student(tiny_model, make_spec(tiny_model))
    ids = torch.arange(20)[None]
    with torch.no_grad():
        ours = student.model(input_ids=ids).logits
        with student.model.disable_adapter():
            base = student.model(input_ids=ids).logits
    assert torch.allclose(ours, base)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_length": 2048}, "1024 tokens"),
        ({"lora_target": ("no_such_layer",)}, "no_such_layer"),
    ],
)
def test_a_spec_that_the_model_cannot_meet_is_refused(
    tiny_model: Path, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        load_student(tiny_model, make_spec(tiny_model, **change))


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")  # PEFT's own, before that
def test_the_output_layer_is_no_target(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match="output layer"):
        load_student(tiny_model, make_spec(tiny_model, lora_target=("q_proj", "lm_head")))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_named(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match="no GPU"):
        load_student(tiny_model, make_spec(tiny_model, device="cuda"))


@pytest.mark.parametrize("weights", [b"", b"not safetensors", None])
def test_weights_that_cannot_be_read_are_refused(
    tiny_model: Path, tmp_path: Path, weights: bytes | None
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "broken")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000] if weights is None else weights)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_student(folder, make_spec(folder))


def test_weights_with_a_tensor_missing_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "gap")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lack") as caught:
        load_student(folder, make_spec(folder))
    assert caught.value.context["missing"] == ["model.layers.1.mlp.up_proj.weight"]


def test_the_checked_scores_are_those_that_training_uses(tiny_model: Path) -> None:
    """Whatever hangs on the output layer is not trained through, so the check must not see it."""
    student = load_student(tiny_model, make_spec(tiny_model))
    hidden = torch.randn(3, student._head.weight.shape[1])
    expected = student.scores(hidden)
    handle = student._head.register_forward_hook(lambda module, inputs, output: output * 2)
    assert torch.equal(student.scores(hidden), expected)
    handle.remove()


def test_a_model_that_changes_its_scores_after_the_head_is_refused(tmp_path: Path) -> None:
    from transformers import GraniteConfig, GraniteForCausalLM

    config = GraniteConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        logits_scaling=8.0,
    )
    GraniteForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="after the output layer"):
        load_student(tmp_path, make_spec(tmp_path))
