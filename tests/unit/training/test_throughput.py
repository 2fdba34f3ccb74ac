"""FLOPs, MFU, cost: against hand-made numbers, a published one, and a profiler's count."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_core.training.throughput import (
    ModelShape,
    attention_flops,
    cost_usd,
    matrix_flops,
    peak_flops,
    utilisation,
)

# Llama-3.1-8B: 32 layers of q, o (4096 x 4096), k, v (4096 x 1024), three of 4096 x 14336.
BODY = 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
HEAD = 4096 * 128_256
LORA = 32 * 16 * (2 * 2 * 4096 + 2 * (4096 + 1024) + 3 * (4096 + 14336))
LLAMA_8B = ModelShape(BODY, HEAD, LORA, layers=32, attention_width=4096)


def test_the_published_llama_number_is_met() -> None:
    # NVIDIA: 12,473 tokens/s of Llama-3.1-8B, LoRA r16, 4096 tokens, is 402 TFLOP/s. They scale
    # attention by 2/3 too, although it has no frozen weights: ours is 4 % higher.
    ours = (matrix_flops(LLAMA_8B, 4096, 4096) + attention_flops(LLAMA_8B, [4096])) / 4096
    assert ours * 12_473 == pytest.approx(402e12, rel=0.05)
    assert ours * 12_473 > 402e12


def test_lora_takes_a_third_less_than_a_full_fine_tuning() -> None:
    full = 6 * (BODY + HEAD + LORA)
    assert matrix_flops(LLAMA_8B, 1, 1) / full == pytest.approx(2 / 3, rel=0.01)


def test_only_tokens_that_the_output_layer_sees_count_for_it() -> None:
    shape = ModelShape(body=10, head=100, lora=1, layers=1, attention_width=1)
    assert matrix_flops(shape, tokens=5, head_tokens=2) == 5 * (40 + 6) + 2 * 400


@given(st.lists(st.integers(1, 4096), min_size=1, max_size=8))
def test_packing_never_adds_attention(lengths: list[int]) -> None:
    whole = attention_flops(LLAMA_8B, [sum(lengths)])
    parts = attention_flops(LLAMA_8B, lengths)
    assert parts == pytest.approx(sum(attention_flops(LLAMA_8B, [n]) for n in lengths))
    assert parts <= whole
    if len(lengths) > 1:
        assert parts < whole


def test_the_matrix_products_are_those_that_pytorch_counts() -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import LlamaConfig, LlamaForCausalLM

    from slm_core.training.engine.model_shape import shape_of

    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation="eager",
    )
    base = LlamaForCausalLM(config)
    bare = shape_of(base)
    assert (bare.head, bare.lora, bare.layers, bare.attention_width) == (50 * 32, 0, 2, 32)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear"))
    shape = shape_of(model)
    assert shape._replace(lora=0) == bare
    assert shape.lora == sum(p.numel() for p in model.parameters() if p.requires_grad)

    tokens = 24
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.arange(tokens)[None]).logits.sum().backward()
    # Eager attention does not skip what the mask hides: twice ours. And nothing asks for the
    # gradient of the first layer's input, of which ours counts the frozen part.
    expected = matrix_flops(shape, tokens, tokens) + 2 * attention_flops(shape, [tokens])
    first = 2 * tokens * 32 * (32 + 16 + 16)
    assert counter.get_total_flops() == pytest.approx(expected - first, rel=0.03)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("A100-PCIE-40GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA GeForce RTX 3090", 71e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("Tesla T4", None),
        ("cpu", None),
    ],
)
def test_the_peak_of_a_gpu(name: str, peak: float | None) -> None:
    assert peak_flops(name, "bfloat16") == peak


def test_float32_has_another_peak_that_is_not_known() -> None:
    assert peak_flops("NVIDIA H200", "float32") is None


def test_utilisation_and_cost() -> None:
    assert utilisation(989e12, 8, 989e12) == pytest.approx(0.125)
    assert utilisation(1e12, 1, None) is None
    assert utilisation(1e12, 0, 989e12) is None
    assert cost_usd(5400, 4.0) == pytest.approx(6.0)
    assert cost_usd(5400, None) is None
