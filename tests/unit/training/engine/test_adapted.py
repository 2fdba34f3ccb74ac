"""Base and B matrices laid into one give what PEFT gives, outputs and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from slm_core.training.engine.adapted import take_over
from slm_core.training.engine.dropout import TokenKeys, token_keys

TOKENS, WIDTH, RANK = 7, 24, 3
SIZES = {"q_proj": 24, "k_proj": 8, "v_proj": 8, "o_proj": 24}


class Layers(nn.Module):
    """Four projections of one input; the first three are siblings."""

    def __init__(self, biased: tuple[str, ...]) -> None:
        super().__init__()
        for name, size in SIZES.items():
            self.add_module(name, nn.Linear(WIDTH, size, bias=name in biased))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([layer(x) for layer in self.children()], dim=-1)


def adapted(biased: tuple[str, ...] = ()) -> Any:
    torch.manual_seed(0)
    config = LoraConfig(r=RANK, lora_alpha=8, lora_dropout=0.0, target_modules=list(SIZES))
    model = get_peft_model(Layers(biased), config).double()  # type: ignore[arg-type]
    set_b(model, seed=1)
    return model


def set_b(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))


def results(model: nn.Module) -> tuple[Tensor, list[Tensor]]:
    """Return the output, and the gradients by the input and every trained parameter."""
    torch.manual_seed(2)
    x = torch.randn(1, TOKENS, WIDTH, dtype=torch.float64, requires_grad=True)
    out = model(x)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)
    trained = [p for p in model.parameters() if p.requires_grad]
    return out, list(torch.autograd.grad((out * weights).sum(), [x, *trained]))


@pytest.mark.parametrize("biased", [(), ("q_proj", "k_proj", "v_proj"), ("k_proj",)], ids=str)
@pytest.mark.parametrize("join", [False, True])
def test_it_computes_what_peft_does(join: bool, biased: tuple[str, ...]) -> None:
    expected, gradients = results(adapted(biased))
    model = adapted(biased)
    take_over(model, model, 0.0, TokenKeys(), join=join)
    found, own = results(model)
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(own, gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_step_of_the_optimizer_shows_in_the_next_pass() -> None:
    plain, joined = adapted(), adapted()
    take_over(joined, joined, 0.0, TokenKeys(), join=True)
    for model in (plain, joined):
        results(model)
        set_b(model, seed=3)
    torch.testing.assert_close(results(joined)[0], results(plain)[0])


def test_dropout_is_the_same_joined_or_not() -> None:
    found = []
    for join in (False, True):
        model = adapted().train()
        keys = TokenKeys()
        keys.tensor = torch.from_numpy(token_keys([5], [TOKENS]))[None]
        take_over(model, model, 0.5, keys, join=join)
        found.append(results(model))
    torch.testing.assert_close(found[0][0], found[1][0])
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other)


def test_joining_keeps_no_weight_twice() -> None:
    model = adapted()
    take_over(model, model, 0.0, TokenKeys(), join=True)
    layers = model.get_base_model()
    joined = layers.q_proj.slm_joined
    for name in ("q_proj", "k_proj", "v_proj"):
        weight = getattr(layers, name).base_layer.weight
        assert weight.untyped_storage().data_ptr() == joined.untyped_storage().data_ptr()
    # What PEFT saves is what it would have saved.
    assert not any("slm_" in name for name in model.state_dict())
