"""A LoRA adapter for a tiny model, with a true record: for tests of loading and serving."""

from __future__ import annotations

from pathlib import Path

from slm_core.backends.model_folder import check_model_folder, file_sha256
from slm_core.prompting.prefix import ContextPrefix
from slm_core.prompting.render import Renderer
from slm_core.records import TRACKS, Adapter, content_id


def build_tiny_adapter(
    path: Path,
    model_path: Path,
    prefix: ContextPrefix | None = None,
    seed: int = 1,
    strength: float = 0.5,
) -> Adapter:
    """Write a random adapter of the model in ``model_path`` to ``path``; return its record.

    With a ``strength`` of 0 the model answers as it does without.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(model_path)
    torch.manual_seed(seed)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at first, which would change no answer
            torch.nn.init.normal_(parameter, std=strength)
    model.save_pretrained(str(path), save_embedding_layers=False)
    renderer = Renderer(AutoTokenizer.from_pretrained(model_path), prefix)
    weights = file_sha256(path / "adapter_model.safetensors")
    adapter = Adapter(
        id=content_id("adapter", weights),
        path=str(path),
        weights_sha256=weights,
        base_model=str(model_path),
        base_sha256=check_model_folder(model_path),
        dataset_id="dataset-tiny",
        run_id="run-tiny",
        spec_digest="spec-tiny",
        cep_id=prefix.id if prefix else None,
        prompt_hash=renderer.prompt_hash,
        tracks=TRACKS,
        code_version="test",
    )
    (path / "slm_adapter.json").write_text(adapter.model_dump_json(), encoding="utf-8")
    return adapter
