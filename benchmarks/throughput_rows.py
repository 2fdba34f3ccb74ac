"""What the training benchmarks train on: rows, model shapes, and the form of a result.

The rows are 1,600 of log-normal length (median 520 tokens, sigma 0.6, clipped to 128..2048)
with random tokens: lengths like those of tool-calling chats, and nothing to learn. The first
70 % of a row is prompt, the rest is supervised. The shape ``nano`` trains on real rows
instead: the synthetic workload, rendered for the nano student.

Models have random weights, made on the device: speed does not depend on what they say. Every
function is a pure function of its arguments, so that each process can make its own.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
NANO_STUDENT = ROOT / "assets" / "nano-student"

ROWS, MEDIAN_TOKENS, SIGMA = 1600, 520, 0.6
SHORTEST, LONGEST = 128, 2048
PROMPT_SHARE = 0.7
NANO_ROWS = 160
NANO_CEP = "universal"

_FIRST_WORD = 16
"""Smaller token ids are left to control tokens."""


class TokenRow(NamedTuple):
    """One tokenized row; the same fields as the trainer's own rows."""

    id: str
    ids: list[int]
    supervised: list[bool]
    """Same length as ``ids``: True where the model learns to write that token."""


@dataclass(frozen=True)
class Shape:
    """A model to train, and how: rows per pass, passes per step, longest row."""

    config: dict[str, Any] = field(default_factory=dict)
    """Arguments of LlamaConfig; empty for ``nano``, which has real weights."""
    device: str = "cuda"
    precision: str = "bf16"
    micro_batch: int = 4
    accumulation: int = 4
    max_length: int = LONGEST
    learning_rate: float = 2e-4
    threads: int | None = None


def _llama(width: int, inner: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": 128_256,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "initializer_range": 0.02,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        **more,
    }


TINY = _llama(64, 128, 2, 8, vocab_size=512, num_key_value_heads=2)

SHAPES: dict[str, Shape] = {
    "llama-3.1-8b": Shape(_llama(4096, 14_336, 32, 32)),
    "1b": Shape(_llama(2048, 8192, 16, 32, tie_word_embeddings=True)),
    # Small enough for a dry run of every setting without a GPU.
    "tiny": Shape(TINY, "cpu", "fp32", micro_batch=2, accumulation=2, threads=2),
    "nano": Shape(
        device="cpu",
        precision="fp32",
        micro_batch=2,
        accumulation=4,
        max_length=1024,
        learning_rate=1e-3,
        threads=2,
    ),
}


@dataclass
class Measured:
    """One setting's result. Speeds cover the second half of the steps, device idle at both
    ends, and count real tokens only, never padding."""

    tokens_per_second: float
    supervised_tokens_per_second: float
    steps: int
    """In all; the second half of them is timed."""
    seconds: float
    """Of the timed half."""
    tokens: int
    """In the timed half."""
    first_loss: float
    last_loss: float
    grad_norm: float
    """Mean over the logged steps, before clipping."""
    peak_gib: float | None
    """Allocated on the fullest GPU, or the process's resident memory on a CPU."""
    reserved_gib: float | None = None
    seconds_to_first_step: float | None = None
    """From the start of training to the end of the first step: compilation is in here."""
    notes: str = ""
    versions: dict[str, str] = field(default_factory=dict)


def make_rows(shape: str, *, seed: int = 0, all_supervised: bool = False) -> list[TokenRow]:
    """Return the rows that ``shape`` trains on; the same arguments give the same rows."""
    if shape == "nano":
        return _workload_rows(seed, all_supervised)
    vocabulary = SHAPES[shape].config["vocab_size"]
    chance = random.Random(seed)
    rows = []
    for number in range(ROWS):
        drawn = MEDIAN_TOKENS * chance.lognormvariate(0.0, SIGMA)
        length = min(LONGEST, max(SHORTEST, round(drawn)))
        ids = chance.choices(range(_FIRST_WORD, vocabulary), k=length)
        prompt = 0 if all_supervised else int(PROMPT_SHARE * length)
        rows.append(TokenRow(f"row-{number}", ids, [place >= prompt for place in range(length)]))
    return rows


def rows_digest(rows: Sequence[TokenRow]) -> str:
    """Return a hash of tokens and masks: equal where two settings trained on the same rows."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr((row.ids, row.supervised)).encode())
    return digest.hexdigest()[:16]


def build_model(shape: str, *, attention: str, seed: int = 0, nf4: bool = False) -> Any:
    """Return the base model of ``shape`` on its device, in its precision."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    about = SHAPES[shape]
    dtype = torch.bfloat16 if about.precision == "bf16" else torch.float32
    torch.manual_seed(seed)
    if shape == "nano":
        return AutoModelForCausalLM.from_pretrained(
            NANO_STUDENT, dtype=dtype, attn_implementation=attention, local_files_only=True
        )
    with torch.device(about.device):
        model = AutoModelForCausalLM.from_config(
            LlamaConfig(**about.config), dtype=dtype, attn_implementation=attention
        )
    return quantize_nf4(model, about.device, dtype) if nf4 else model


def quantize_nf4(model: Any, device: str, compute_dtype: Any) -> Any:
    """Put the decoder's linear layers into 4 bits in place (NF4, double quantization).

    The same layers that transformers replaces at load, without 16 GB of random weights on
    disk in between. The output layer stays as it is.
    """
    import bitsandbytes as bnb
    from torch import nn

    decoder = getattr(model, model.base_model_prefix)
    for path, layer in list(decoder.named_modules()):
        if not isinstance(layer, nn.Linear):
            continue
        small = bnb.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=compute_dtype,
            compress_statistics=True,
            quant_type="nf4",
            device="meta",
        )
        small.weight = bnb.nn.Params4bit(
            layer.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True
        ).to(device)
        parent, _, name = path.rpartition(".")
        setattr(decoder.get_submodule(parent), name, small)
    model.is_loaded_in_4bit = True
    return model


def use_threads(shape: str) -> None:
    """Take as many CPU threads as ``shape`` says."""
    import torch

    threads = SHAPES[shape].threads
    if threads is not None:
        torch.set_num_threads(threads)


def peak_memory(device: str) -> tuple[float, float | None]:
    """Return the peak (allocated, reserved) in GiB: of the GPU, or (resident, None) on a CPU."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 2**30, torch.cuda.max_memory_reserved() / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, None


def versions(*packages: str) -> dict[str, str]:
    """Return the installed versions of ``packages``, and the device's name."""
    import importlib.metadata

    import torch

    found = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")}
    found |= {name: importlib.metadata.version(name) for name in packages}
    found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return found


def workload_examples(seed: int = 0) -> list[Any]:
    """Return the examples of the shape ``nano``: half of each track."""
    from slm_core.records import TRACKS
    from slm_core.testing.workload import generate

    each = NANO_ROWS // len(TRACKS)
    return [example for track in TRACKS for example in generate(seed, each, "traffic", track)]


def _workload_rows(seed: int, all_supervised: bool) -> list[TokenRow]:
    from transformers import AutoTokenizer

    from slm_core.prompting.prefix import get_prefix
    from slm_core.prompting.render import Renderer

    tokenizer = AutoTokenizer.from_pretrained(NANO_STUDENT, local_files_only=True)
    renderer = Renderer(tokenizer, get_prefix(NANO_CEP))
    rows = []
    for example in workload_examples(seed):
        ids, learned = renderer.example(example.prompt, example.tools, example.completion)
        supervised = [True] * len(ids) if all_supervised else list(learned)
        rows.append(TokenRow(example.id, list(ids), supervised))
    return [row for row in rows if len(row.ids) <= SHAPES["nano"].max_length]
