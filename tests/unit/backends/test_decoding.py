"""Our decoding gives the tokens that the library's own ``generate`` gives, row by row."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from slm_core.backends.decoding import decode_greedily

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.5,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}


@pytest.fixture(autouse=True)
def _double_precision() -> Iterator[None]:
    # Batches add in another order; in float64 no tie is ever that close.
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    yield
    torch.set_default_dtype(torch.float32)


def _llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()


def _prompts(count: int, shared: int) -> list[list[int]]:
    rng = random.Random(count)
    start = [rng.randrange(2, 97) for _ in range(shared)]
    return [
        start + [rng.randrange(2, 97) for _ in range(rng.randrange(1, 40))] for _ in range(count)
    ]


def _decode(network: object, prompts: list[list[int]], limits: list[int]) -> list[list[int]]:
    answers: list[list[int]] = [[] for _ in prompts]
    for pairs in decode_greedily(network, prompts, limits=limits, end_ids={1, 5}):
        for row, token in pairs:
            answers[row].append(token)
    return answers


def _generate(network: Any, prompt: list[int], limit: int) -> list[int]:
    ids = torch.tensor([prompt])
    found = network.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=limit,
        do_sample=False,
        eos_token_id=[1, 5],
    )
    return found[0, len(prompt) :].tolist()


@pytest.mark.parametrize("shared", [0, 3, 30])
def test_each_row_answers_as_if_it_were_alone(shared: int) -> None:
    network = _llama()
    prompts = _prompts(9, shared)
    limits = [3, 60, 60, 1, 60, 20, 60, 60, 7]
    answers = _decode(network, prompts, limits)
    expected = [_generate(network, *row) for row in zip(prompts, limits, strict=True)]
    assert answers == expected
    ends = {answer[-1] in (1, 5) for answer in expected}
    assert ends == {True, False}, "the case must hold rows that end and rows that are cut"


def test_prompts_of_equal_length_need_no_padding() -> None:
    network = _llama()
    prompts = [prompt[:20] for prompt in _prompts(6, 30)]
    prompts[-1][-1] += 1
    assert _decode(network, prompts, [20] * 6) == [_generate(network, p, 20) for p in prompts]


@pytest.mark.parametrize("shared", [0, 30])
def test_sliding_window_layers_keep_their_window(shared: int) -> None:
    torch.manual_seed(0)
    network = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=24)).eval()
    prompts = _prompts(5, shared)
    assert _decode(network, prompts, [25] * 5) == [_generate(network, p, 25) for p in prompts]
