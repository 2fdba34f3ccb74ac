from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, linear

from slm_core.training.engine import loss as losses
from slm_core.training.engine.loss import linear_cross_entropy


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tokens", [1, 63, 300])
def test_loss_and_gradient_are_those_of_torch(
    tokens: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "_CHUNK_BYTES", 100 * 4 * 50)  # several chunks
    torch.manual_seed(0)
    hidden = torch.randn(tokens, 16, dtype=torch.float64).float().requires_grad_()
    weight, offset = torch.randn(50, 16), torch.randn(50) if bias else None
    targets = torch.randint(50, (tokens,))
    ours = linear_cross_entropy(hidden, weight, offset, targets)
    theirs = cross_entropy(linear(hidden, weight, offset), targets, reduction="sum")
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    mine, expected = (torch.autograd.grad(x / 7, hidden)[0] for x in (ours, theirs))
    assert torch.allclose(mine, expected, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        alone = linear_cross_entropy(hidden, weight, offset, targets).item()
    assert alone == pytest.approx(theirs.item(), rel=1e-5)
