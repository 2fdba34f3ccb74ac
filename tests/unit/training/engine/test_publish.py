"""The published folder is one that other people's servers load."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from slm_core.records import Adapter
from slm_core.testing.training_runs import make_job
from slm_core.training import TrainingSpec
from slm_core.training.engine.publish import publish_adapter
from slm_core.training.engine.student import load_student
from slm_core.training.run_folder import RunFolder

# vllm/lora/utils.py, parse_fine_tuned_lora_name: anything else is "unsupported LoRA weight".
LAYERS = set("q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split())
VLLM_NAME = re.compile(r"base_model\.model\.(?P<layer>[\w.]+)\.lora_(?P<part>[AB])\.weight")


@pytest.fixture(params=["all-linear", ("q_proj", "down_proj")])
def published(
    request: pytest.FixtureRequest, tiny_model: Path, tmp_path: Path
) -> tuple[Adapter, TrainingSpec]:
    spec = TrainingSpec(
        base_model="owner/tiny",
        lora_r=12,
        lora_alpha=24,
        lora_target=request.param,
        max_length=512,
        device="cpu",
    )
    student = load_student(tiny_model, spec)
    with torch.no_grad():
        for name, parameter in student.trainable.items():
            parameter.fill_(0.25 if "lora_B" in name else 0.5)
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    job = make_job(spec)
    summary: dict[str, Any] = {"steps": 1, "supervised_tokens": 1200}
    return publish_adapter(run, job, student, prompt_hash="p", summary=summary, losses=[]), spec


def tensors(adapter: Adapter) -> dict[str, torch.Tensor]:
    file = Path(adapter.path) / "adapter_model.safetensors"
    with safe_open(file, "pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


def test_the_settings_are_those_that_vllm_takes(published: tuple[Adapter, TrainingSpec]) -> None:
    adapter, spec = published
    settings = json.loads((Path(adapter.path) / "adapter_config.json").read_text())
    # vllm/lora/peft_helper.py: these three must be there, and be of these types.
    assert (settings["r"], settings["lora_alpha"]) == (12, 24)
    targets = settings["target_modules"]
    assert isinstance(targets, list)
    # Names or whole paths of layers; it looks at the last part.
    assert {name.rsplit(".", 1)[-1] for name in targets} <= LAYERS
    # What it refuses.
    assert settings["bias"] == "none"
    assert not settings["modules_to_save"]
    assert not settings["use_dora"]
    # What it does not read, and would so leave out.
    assert not settings["use_rslora"]
    assert not settings["rank_pattern"]
    assert not settings["alpha_pattern"]
    assert settings["base_model_name_or_path"] == spec.base_model
    assert settings["peft_type"] == "LORA"


def test_every_tensor_bears_a_name_that_vllm_knows(
    published: tuple[Adapter, TrainingSpec],
) -> None:
    adapter, spec = published
    settings = json.loads((Path(adapter.path) / "adapter_config.json").read_text())
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors(adapter).items():
        found = VLLM_NAME.fullmatch(name)
        assert found, name
        pairs.setdefault(found["layer"], {})[found["part"]] = tensor
    for layer, pair in pairs.items():
        assert {layer, layer.rsplit(".", 1)[1]} & set(settings["target_modules"]), layer
        assert set(pair) == {"A", "B"}
        assert (pair["A"].shape[0], pair["B"].shape[1]) == (spec.lora_r, spec.lora_r)
    per_layer = 7 if spec.lora_target == "all-linear" else len(spec.lora_target)
    assert len(pairs) == 2 * per_layer


def test_plain_peft_loads_every_weight(
    published: tuple[Adapter, TrainingSpec], tiny_model: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter, _ = published
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    loaded = PeftModel.from_pretrained(base, adapter.path)
    lora = {name: p for name, p in loaded.named_parameters() if ".lora_" in name}
    assert len(lora) == len(tensors(adapter))
    for name, parameter in lora.items():
        assert torch.all(parameter == (0.25 if "lora_B" in name else 0.5)), name


def test_the_card_tells_how_to_serve_it(published: tuple[Adapter, TrainingSpec]) -> None:
    adapter, _ = published
    card = (Path(adapter.path) / "README.md").read_text()
    assert adapter.id in card
    assert "vllm serve owner/tiny --enable-lora --max-lora-rank 16" in card
