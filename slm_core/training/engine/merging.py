"""Merge an adapter into its base model, and measure what that changes. Imports torch.

An adapter corrects the weights it was trained on. One that was trained on 4-bit weights has
also learned to undo their rounding, so it is merged into those weights, unpacked, not into
the finer ones they came from: there the correction would be an error of its own.

All sums are made in float32 and rounded once, to the wanted dtype. The comparison loads what
was written and computes in float32 too, so it sees the merge alone, not a server's rounding.
"""

from __future__ import annotations

import gc
import logging
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from slm_core.backends.loading import device_of, load_base, load_tokenizer
from slm_core.errors import ConfigError, ModelError, PromptMismatch
from slm_core.prompting.prefix import get_prefix
from slm_core.prompting.render import Renderer
from slm_core.records import Message
from slm_core.training.engine.nf4 import nf4_config
from slm_core.training.merged_model import MergeCheck, MergeOrder
from slm_core.training.rows import read_examples

log = logging.getLogger(__name__)

_POSITIONS_OF_A_PROMPT = 64
# Scores are kept for each: of 150,000 tokens these take 1.2 GB.
_MOST_POSITIONS = 2048
_COPIED = ("*.json", "*.jinja", "*.model", "*.txt", "LICENSE*", "NOTICE*")
_NOT_COPIED = ("config.json", "*.index.json", "slm_*.json", "adapter_*.json", "README*")


class Probe(NamedTuple):
    """One input, and the positions of it whose next token is looked at."""

    ids: list[int]
    positions: list[int]
    targets: list[int]
    """The supervised tokens that follow those positions; empty for a prompt."""


class Scores(NamedTuple):
    """What a model says to all probes."""

    logits: Tensor
    """(positions, vocabulary), float32, on the CPU."""
    perplexity: float | None


@torch.no_grad()
def merge_and_compare(order: MergeOrder) -> tuple[str, MergeCheck]:
    """Write the merged model to ``order.model``; return its dtype and the comparison.

    Raises:
        ModelError: base or adapter cannot be loaded, or is of a kind that cannot be merged.
        PromptMismatch: the base's prompt is not the one the adapter was trained with.
        ConfigError: a GPU is asked for where none is.
        MissingDependency: 4-bit without bitsandbytes.
    """
    if order.threads is not None:
        torch.set_num_threads(order.threads)
    base, model = Path(order.model_folder), Path(order.model)
    probes = _probes(order, _renderer(order, base))
    device = device_of(order.device)

    adapted, stored = _load_adapted(order, device, nf4=order.trained_on_nf4)
    before = _ask(adapted, probes, device)
    if order.merge_into_nf4 != order.trained_on_nf4:
        del adapted
        gc.collect()
        adapted, stored = _load_adapted(order, device, nf4=order.merge_into_nf4)
    dtype = stored if order.dtype == "auto" else getattr(torch, order.dtype)
    merged = _merge(adapted).to(dtype)
    merged.save_pretrained(str(model))
    _copy_papers(base, model)
    del adapted, merged
    gc.collect()

    _renderer(order, model)
    after = _ask(load_base(model, torch.float32).to(device), probes, device)
    return str(dtype).removeprefix("torch."), _compare(before, after, probes)


def _renderer(order: MergeOrder, folder: Path) -> Renderer:
    renderer = Renderer(load_tokenizer(folder), get_prefix(order.variant))
    if renderer.prompt_hash != order.prompt_hash:
        raise PromptMismatch(
            f"The adapter was trained with another prompt than {folder} makes: chat template, "
            "tool format or context prefix differ.",
            expected=order.prompt_hash,
            found=renderer.prompt_hash,
        )
    return renderer


def _probes(order: MergeOrder, renderer: Renderer) -> list[Probe]:
    """Return prompts and dataset rows to compare on, of at most so many positions."""
    found: list[Probe] = []
    for text in order.prompts:
        ids = renderer.prompt_ids([Message(role="user", content=text)])
        found.append(Probe(ids, list(range(len(ids)))[-_POSITIONS_OF_A_PROMPT:], []))
    left = _MOST_POSITIONS - sum(len(probe.positions) for probe in found)
    dataset = Path(order.dataset_path) if order.dataset_path else None
    examples = (read_examples(dataset, "val") or read_examples(dataset, "train")) if dataset else []
    for example in examples[: order.max_rows]:
        ids, supervised = renderer.example(example.prompt, example.tools, example.completion)
        ends = [at for at, wanted in enumerate(supervised) if wanted and at > 0]
        left -= len(ends)
        if left < 0:
            break
        found.append(Probe(ids, [at - 1 for at in ends], [ids[at] for at in ends]))
    if not found:
        raise ConfigError("There is nothing to compare on; give prompts, or a dataset with rows.")
    return found


def _load_adapted(
    order: MergeOrder, device: torch.device, *, nf4: bool
) -> tuple[PeftModel, torch.dtype]:
    """Return base and adapter, unmerged, in float32, and the dtype that the base came in."""
    folder = Path(order.model_folder)
    if nf4:
        precision = torch.bfloat16 if order.precision == "bfloat16" else torch.float32
        options = {"quantization_config": nf4_config(precision), "device_map": {"": device}}
        base = load_base(folder, precision, **options).dequantize(precision)
        stored = precision
    else:
        base = load_base(folder, "auto")
        stored = base.dtype
    try:
        adapted = PeftModel.from_pretrained(base.float().to(device), order.adapter_path)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{order.adapter_path} cannot be loaded: {error}") from error
    _check_kind(cast(PeftModel, adapted))
    return cast(PeftModel, adapted.eval()), stored


def _check_kind(adapted: PeftModel) -> None:
    """Refuse what is more than products of two matrices on layers of their own."""
    config: Any = adapted.peft_config["default"]
    if config.use_dora or config.modules_to_save or config.bias != "none":
        raise ModelError(
            "Only plain LoRA adapters are merged: no DoRA, no whole modules, no biases.",
            use_dora=config.use_dora,
            modules_to_save=config.modules_to_save,
            bias=config.bias,
        )
    embeddings = cast(Any, adapted.get_base_model()).get_input_embeddings()
    looked_up = getattr(embeddings, "weight", None)
    for name, layer in _layers(adapted):
        if layer.get_base_layer().weight is looked_up:
            raise ModelError(
                f"{name} shares its weights with the embeddings; merging would change those too."
            )


def _layers(adapted: PeftModel) -> list[tuple[str, LoraLayer]]:
    return [(name, one) for name, one in adapted.named_modules() if isinstance(one, LoraLayer)]


def _merge(adapted: PeftModel) -> Any:
    """Add each layer's update to its weights, in place; return the base model."""
    for name, layer in _layers(adapted):
        weight = layer.get_base_layer().weight
        weight.data += cast(Any, layer).get_delta_weight("default").to(weight.dtype)
        log.debug("layer merged name=%s", name)
    model = cast(Any, adapted).unload()
    # What transformers remembers of the quantization that the weights came through.
    for mark in ("hf_quantizer", "is_loaded_in_4bit", "is_quantized", "quantization_method"):
        if hasattr(model, mark):
            delattr(model, mark)
    return model


def _ask(model: nn.Module, probes: Sequence[Probe], device: torch.device) -> Scores:
    found: list[Tensor] = []
    loss, count = 0.0, 0
    for ids, positions, targets in probes:
        logits = cast(Any, model)(
            input_ids=torch.tensor([ids], device=device),
            logits_to_keep=torch.tensor(positions, device=device),
            use_cache=False,
        ).logits[0]
        if targets:
            wanted = torch.tensor(targets, device=device)
            loss += float(cross_entropy(logits, wanted, reduction="sum"))
            count += len(targets)
        found.append(logits.float().cpu())
    return Scores(torch.cat(found), _perplexity(loss / count) if count else None)


def _perplexity(loss: float) -> float | None:
    # Beyond 700 there is no float of it; such a model is broken anyway.
    return math.exp(loss) if math.isfinite(loss) and loss < 700 else None


def _compare(before: Scores, after: Scores, probes: Sequence[Probe]) -> MergeCheck:
    difference = (before.logits - after.logits).abs()
    # The most likely token of NaN scores is token 0, which may be right by chance.
    sound = after.logits.isfinite().all(-1)
    equal = (before.logits.argmax(-1) == after.logits.argmax(-1)) & sound
    rows = sum(1 for probe in probes if probe.targets)
    return MergeCheck(
        prompts=len(probes) - rows,
        rows=rows,
        positions=len(before.logits),
        max_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        spread=float(before.logits.std()),
        equal_tokens=float(equal.float().mean()),
        perplexity_before=before.perplexity,
        perplexity_after=after.perplexity,
    )


def _copy_papers(base: Path, model: Path) -> None:
    """Copy tokenizer, chat template and licence byte for byte: saving may rewrite them."""
    for pattern in _COPIED:
        for file in base.glob(pattern):
            written = (model / file.name).exists()
            if not written and not any(file.match(name) for name in _NOT_COPIED):
                shutil.copyfile(file, model / file.name)
