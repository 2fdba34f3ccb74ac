"""Merging for real: worker processes, 4-bit weights, and models that plain transformers loads."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from slm_core.backends.model_folder import check_model_folder
from slm_core.cli.app import app
from slm_core.errors import ConfigError, MergeRejected, ModelError, RunBusy
from slm_core.prompting.prefix import PREFIXES
from slm_core.records import Adapter
from slm_core.store import open_store
from slm_core.testing.records import make_dataset, make_example
from slm_core.testing.tiny_adapter import build_tiny_adapter
from slm_core.training.merge import merge_adapter
from slm_core.training.merged_model import MergeOrder

pytestmark = [
    pytest.mark.integration,
    # PEFT 0.21 reads an attribute that transformers 5.23 calls deprecated.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),
]

IDS = list(range(5, 45))


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    folder = tmp_path_factory.mktemp("plain") / "adapter"
    return build_tiny_adapter(folder, tiny_model, PREFIXES["compact"])


@pytest.fixture(scope="module")
def nf4_adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    """An adapter whose record says that it was trained on 4-bit weights."""
    folder = tmp_path_factory.mktemp("nf4") / "adapter"
    made = build_tiny_adapter(folder, tiny_model, PREFIXES["compact"])
    summary = {"quantization": "nf4", "precision": "float32"}
    made = made.model_copy(update={"summary": summary})
    (folder / "slm_adapter.json").write_text(made.model_dump_json())
    return made


def logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(torch.tensor([IDS])).logits


def with_adapter(base: Any, adapter: Adapter) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(base, adapter.path).eval()


def loaded(folder: Path | str, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def order(adapter: Adapter, base: Path, out: Path, **changes: Any) -> MergeOrder:
    """What the parent would tell a worker; this process does it."""
    values: dict[str, Any] = {
        "parent_pid": os.getpid(),
        "adapter_path": adapter.path,
        "model_folder": str(base),
        "model": str(out),
        "variant": "compact",
        "prompt_hash": adapter.prompt_hash,
        "dtype": "auto",
        "trained_on_nf4": False,
        "merge_into_nf4": False,
        "precision": "float32",
        "prompts": ("Hello",),
        "dataset_path": None,
        "max_rows": 0,
        "device": "cpu",
        "threads": None,
    }
    return MergeOrder(**(values | changes))


def test_the_command_makes_a_model_that_answers_as_base_and_adapter(
    adapter: Adapter, tiny_model: Path, tmp_path: Path, slm_home: Path
) -> None:
    import torch

    data = tmp_path / "data"
    data.mkdir()
    rows = [make_example(number).model_dump_json() for number in range(3)]
    (data / "val.jsonl").write_text("\n".join(rows) + "\n")
    with open_store(f"sqlite:///{slm_home / 'slm.db'}") as store:
        store.adapters.save(adapter)
        store.datasets.save(make_dataset(str(data), id=adapter.dataset_id))
    out = tmp_path / "merged"
    result = CliRunner().invoke(app, ["adapters", "merge", adapter.id, "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["check"]["rows"] == 3
    assert said["check"]["equal_tokens"] == 1.0
    assert said["check"]["perplexity_before"] == pytest.approx(said["check"]["perplexity_after"])
    assert (said["dtype"], said["merged_into_nf4"], said["forced"]) == ("float32", False, False)

    base = logits(loaded(tiny_model))
    expected = logits(with_adapter(loaded(tiny_model), adapter))
    merged = logits(loaded(out))
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(merged, base, atol=0.1), "the adapter changes nothing"

    # A whole model folder: its hashes are checked, its prompt is the adapter's.
    assert check_model_folder(out) == said["files"]["model.safetensors"]
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (tiny_model / name).read_bytes()
    assert json.loads((out / "slm_merged.json").read_text())["adapter_id"] == adapter.id
    assert str(tiny_model) not in (out / "README.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir() if "merged" in path.name) == ["merged"]


def test_a_4bit_adapter_is_merged_into_the_weights_it_was_trained_on(
    nf4_adapter: Adapter, tiny_model: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import BitsAndBytesConfig

    from slm_core.training.engine.merging import merge_and_compare

    out = tmp_path / "merged"
    dtype, check = merge_and_compare(
        order(nf4_adapter, tiny_model, out, trained_on_nf4=True, merge_into_nf4=True)
    )
    assert dtype == "float32"
    assert check.problems() == ()

    quantized = loaded(
        tiny_model,
        dtype=torch.float32,
        device_map={"": "cpu"},
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        ),
    )
    # As in training: without gradients bitsandbytes takes a shortcut with bfloat16 sums.
    quantized.enable_input_require_grads()
    trained = with_adapter(quantized, nf4_adapter).train()
    trained_on = trained(torch.tensor([IDS])).logits.detach()
    merged = logits(loaded(out))
    torch.testing.assert_close(merged, trained_on, rtol=1e-4, atol=1e-4)
    onto_full = logits(with_adapter(loaded(tiny_model), nf4_adapter))
    assert (merged - onto_full).abs().max() > 100 * (merged - trained_on).abs().max()
    assert "quantization" not in (out / "config.json").read_text()


def test_merged_into_other_weights_it_is_rejected_unless_forced(
    nf4_adapter: Adapter, tiny_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "merged"
    with pytest.raises(MergeRejected, match="trained on the 4-bit weights") as refused:
        merge_adapter(nf4_adapter.path, tiny_model, out, quantized=False, threads=1)
    assert refused.value.context["mean_difference"] > 0
    assert list(tmp_path.glob("merged*")) == []

    made = merge_adapter(
        nf4_adapter.path, tiny_model, out, quantized=False, force=True, dtype="bfloat16", threads=1
    )
    assert (made.forced, made.dtype) == (True, "bfloat16")
    assert made.check.problems()
    assert "by force" in (out / "README.md").read_text()
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_worker_that_refuses_leaves_nothing_and_says_why(
    adapter: Adapter, tiny_model: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    # The tensors are those of two layers; a third would be random.
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ModelError, match="lack some"):
        merge_adapter(adapter.path, base, tmp_path / "merged", threads=1)
    assert not list(tmp_path.glob("merged*"))


def test_what_needs_no_worker_is_refused_at_once(
    adapter: Adapter, tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="exists already"):
        merge_adapter(adapter.path, tiny_model, tmp_path)

    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    with pytest.raises(ModelError, match="other base weights"):
        merge_adapter(adapter.path, other, tmp_path / "merged")

    draft = tmp_path / "merged.draft"
    draft.mkdir()
    (draft / "left").write_text("by a merge at work")
    handle = os.open(draft, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(RunBusy):
            merge_adapter(adapter.path, tiny_model, tmp_path / "merged")
    finally:
        os.close(handle)
    assert (draft / "left").exists(), "the files of another merge were removed"


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings:UserWarning")
@pytest.mark.parametrize(
    "change", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"target": "lm_head"}]
)
def test_adapters_that_are_more_than_two_matrices_are_not_merged(
    change: dict[str, Any], adapter: Adapter, tiny_model: Path, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    from slm_core.training.engine.merging import merge_and_compare

    # The tiny model's output layer shares its weights with the embeddings.
    target = change.get("target", "q_proj")
    config = LoraConfig(
        r=2, target_modules=[target], **{k: v for k, v in change.items() if k != "target"}
    )
    get_peft_model(loaded(tiny_model), config).save_pretrained(
        str(tmp_path / "odd"), save_embedding_layers=False
    )
    words = "shares its weights" if "target" in change else "Only plain LoRA"
    with pytest.raises(ModelError, match=words):
        merge_and_compare(
            order(adapter, tiny_model, tmp_path / "merged", adapter_path=str(tmp_path / "odd"))
        )
