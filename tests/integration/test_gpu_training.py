"""What only a GPU can show: the variable-length kernel, real CUDA memory errors, exact resume."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from slm_core.training import TrainingSpec
from slm_core.training.engine.batches import Numbered, packed, padded
from slm_core.training.engine.loop import Loop
from slm_core.training.engine.student import Student, attach
from slm_core.training.plan import first_plan
from slm_core.training.rows import Row

pytestmark = pytest.mark.gpu

VOCABULARY = 512


def make_rows(number: int = 24) -> list[Row]:
    chance = random.Random(0)
    rows = []
    for name in range(number):
        length = chance.randrange(40, 400)
        ids = chance.choices(range(VOCABULARY), k=length)
        rows.append(Row(str(name), ids, [place > length // 2 for place in range(length)]))
    return rows


def make_student(spec: TrainingSpec, dtype: torch.dtype = torch.bfloat16) -> Student:
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=4096,
    )
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config, dtype=dtype)
    student = attach(base, spec, device=torch.device("cuda"), precision=dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in student.trainable.items():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return student


def make_spec(**changes: Any) -> TrainingSpec:
    values: dict[str, Any] = {
        "base_model": "random",
        "max_length": 512,
        "micro_batch": 4,
        "accumulation": 2,
        "epochs": 3,
        "learning_rate": 1e-3,
        "device": "cuda",
    }
    return TrainingSpec(**(values | changes))


# Of torch itself, while it imports its compiler.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("compiled", [False, True])
def test_packed_rows_give_the_gradient_of_padded_ones(compiled: bool) -> None:
    spec = make_spec()
    student = make_student(spec)
    if compiled:
        student.compile()
    student.model.train()
    rows = [Numbered(row, 77 * n) for n, row in enumerate(make_rows(6))]
    parameters = list(student.trainable.values())
    found = []
    for batch in (
        packed(rows, student.device, longest=512, multiple=128),
        padded(rows, student.device),
    ):
        loss = student.loss_sum(batch)
        flat = [g.flatten() for g in torch.autograd.grad(loss, parameters)]
        found.append((loss.item(), torch.cat(flat)))
    (loss, gradient), (expected_loss, expected) = found
    assert loss == pytest.approx(expected_loss, rel=2e-3)
    assert (gradient - expected).norm() / expected.norm() < 0.05  # bf16


def test_packed_rows_cannot_see_each_other() -> None:
    student = make_student(make_spec())
    first, second = make_rows(2)
    other = first._replace(ids=[(i + 7) % VOCABULARY for i in first.ids])
    with torch.no_grad():
        before, after = (
            student.hidden(
                packed([Numbered(one, 1), Numbered(second, 2)], student.device, longest=512)
            )
            for one in (first, other)
        )
    start = len(first.ids)
    assert torch.isfinite(before).all()
    assert torch.equal(before[:, start:], after[:, start:])
    assert not torch.equal(before[:, :start], after[:, :start])


def test_a_real_memory_error_is_survived_in_the_step() -> None:
    """The allocator is capped below the peak after step 1; the losses stay the same."""
    torch.cuda.empty_cache()
    spec = make_spec()
    untroubled = Loop(make_student(spec), make_rows(), spec, first_plan(spec))
    expected = [result.loss for result in untroubled.steps()]
    del untroubled
    torch.cuda.reset_peak_memory_stats()
    loop = Loop(make_student(spec), make_rows(), spec, first_plan(spec))
    told: list[str] = []
    loop.passes.on_recovery = lambda step, rung, message, facts: told.append(rung)
    steps = loop.steps()
    losses = [next(steps).loss]
    resting, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    try:
        torch.cuda.set_per_process_memory_fraction((resting + 0.7 * (peak - resting)) / total)
        losses += [result.loss for result in steps]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "split" in told
    assert losses == pytest.approx(expected, abs=2e-3)


def test_a_resumed_loop_goes_on_with_the_same_loss(tmp_path: Path) -> None:
    spec, rows = make_spec(), make_rows()
    unbroken = [r.loss for r in Loop(make_student(spec), rows, spec, first_plan(spec)).steps()]
    first = Loop(make_student(spec), rows, spec, first_plan(spec))
    taken = [result.loss for result in islice(first.steps(), 4)]
    for name, data in first.state_files().items():
        (tmp_path / name).write_bytes(data)
    second = Loop(make_student(spec), rows, spec, first_plan(spec))
    second.restore(tmp_path, first.counters)
    for name, parameter in first._student.trainable.items():
        assert torch.equal(parameter, second._student.trainable[name])
    third = Loop(make_student(spec), rows, spec, first_plan(spec))
    third.restore(tmp_path, first.counters)
    resumed, again = next(second.steps()).loss, next(third.steps()).loss
    went_on = next(iter(first.steps())).loss
    assert resumed is not None
    assert went_on is not None
    assert abs(resumed - went_on) < 1e-6
    assert resumed == again
    assert taken == pytest.approx(unbroken[:4], abs=2e-3)


def test_the_preflight_passes_here() -> None:
    from slm_core.health import HealthSpec, check_gpus

    report = check_gpus(HealthSpec(), active=True)
    assert report.usable, report
    assert report.seconds < 45
