from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from slm_core.errors import TrainingDiverged
from slm_core.prompting.prefix import get_prefix
from slm_core.prompting.render import Renderer
from slm_core.testing.records import make_example
from slm_core.training import TrainingSpec
from slm_core.training.engine.batches import Numbered, packed, padded
from slm_core.training.engine.loop import Loop
from slm_core.training.engine.student import Student, load_student
from slm_core.training.plan import first_plan
from slm_core.training.rows import Row, shorten

CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The tiny model is too small to share out among threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def renderer(tiny_model: Path) -> Renderer:
    return Renderer(AutoTokenizer.from_pretrained(tiny_model), get_prefix("compact"))


@pytest.fixture(scope="module")
def rows(renderer: Renderer) -> list[Row]:
    examples = [make_example(10**number, "toolcall") for number in range(8)]
    rows = [Row(e.id, *renderer.example(e.prompt, e.tools, e.completion)) for e in examples]
    assert len({len(row.ids) for row in rows}) > 3  # padding is at work below
    return rows


def make_spec(model: Path, **changes: Any) -> TrainingSpec:
    values: dict[str, Any] = {
        "base_model": str(model),
        "max_length": 512,
        "lora_r": 4,
        "lora_dropout": 0.1,
        "micro_batch": 8,
        "accumulation": 1,
        "learning_rate": 1e-2,
        "device": "cpu",
    }
    return TrainingSpec(**(values | changes))


def make_loop(
    model: Path,
    rows: list[Row],
    *,
    pass_rows: int = 8,
    pass_tokens: int = 4096,
    **changes: Any,
) -> Loop:
    spec = make_spec(model, **changes)
    plan = first_plan(spec).model_copy(update={"pass_rows": pass_rows, "pass_tokens": pass_tokens})
    return Loop(load_student(model, spec), rows, spec, plan)


def student_of(loop: Loop) -> Student:
    return loop._student


def weights(loop: Loop) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in student_of(loop).trainable.items()}


def make_b_matter(loop: Loop) -> None:
    """LoRA's B begins at zero, and with it the gradient of A; give both one."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in student_of(loop).trainable.items():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=generator)


def test_the_loss_is_that_of_transformers_with_a_mask(tiny_model: Path, rows: list[Row]) -> None:
    """Reference: the model's own loss, padded, with attention mask and -100 labels."""
    loop = make_loop(tiny_model, rows)
    make_b_matter(loop)
    longest = max(len(row.ids) for row in rows)
    ids, mask, labels = [], [], []
    for row in rows:
        padding = longest - len(row.ids)
        ids.append(row.ids + [0] * padding)
        mask.append([1] * len(row.ids) + [0] * padding)
        kept = [i if s else -100 for i, s in zip(row.ids, row.supervised, strict=True)]
        labels.append(kept + [-100] * padding)
    model = student_of(loop).model.eval()
    with torch.no_grad():
        expected = model(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(mask),
            labels=torch.tensor(labels),
        ).loss.item()
    assert loop.validation_loss(rows) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("lay", ["packed", "padded"])
def test_only_the_answer_and_its_end_are_learned(
    rows: list[Row], renderer: Renderer, lay: str
) -> None:
    numbered = [Numbered(row, 0) for row in rows[:2]]
    batch = packed(numbered, CPU, longest=512) if lay == "packed" else padded(numbered, CPU)
    learned = [
        token
        for n in (1, 10)
        for token in (*renderer.encode_content(make_example(n).completion), renderer.end_ids[0])
    ]
    assert batch.targets.tolist()[: len(learned)] == learned[: len(batch.targets)]
    flat = batch.ids.flatten()
    assert flat[batch.predicting + 1].tolist() == batch.targets.tolist()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(
    "split",
    [
        {"pass_tokens": 400},
        {"pass_tokens": 1},  # every row alone
        {"packing": False},
        {"packing": False, "pass_rows": 3},
        {"packing": False, "pass_rows": 1},
    ],
    ids=str,
)
def test_however_a_step_is_split_its_gradient_is_the_same(
    tiny_model: Path, rows: list[Row], split: dict[str, Any], dropout: float
) -> None:
    """Packed or padded, in one pass or many, with dropout or without."""
    losses, gradients = [], []
    for change in ({}, split):
        loop = make_loop(tiny_model, rows, lora_dropout=dropout, **change)
        make_b_matter(loop)
        losses.append(loop.gradient(1, range(8)))
        gradients.append({n: p.grad for n, p in student_of(loop).trainable.items()})
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    whole, other = gradients
    for name, gradient in whole.items():
        assert gradient is not None
        assert gradient.norm() > 0
        assert (gradient - other[name]).norm() / gradient.norm() < 2e-5, name


def test_packed_rows_cannot_see_each_other(tiny_model: Path, rows: list[Row]) -> None:
    """Change the first row; nothing may change for the second, nor for what it learns."""
    student = student_of(make_loop(tiny_model, rows))
    make_b_matter(make_loop(tiny_model, rows))
    other = rows[0]._replace(ids=[(i + 7) % 200 for i in rows[0].ids])
    start = len(rows[0].ids)
    with torch.no_grad():
        before, after = (
            student.hidden(packed([Numbered(first, 1), Numbered(rows[1], 2)], CPU, longest=512))
            for first in (rows[0], other)
        )
    assert torch.equal(before[:, start:], after[:, start:])
    assert not torch.allclose(before[:, :start], after[:, :start])


def test_the_update_is_that_of_peft(tiny_model: Path, rows: list[Row]) -> None:
    """Without dropout our forward pass and PEFT's give the same gradient."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    loop = make_loop(tiny_model, rows[:1], lora_dropout=0.0)
    make_b_matter(loop)
    loop.gradient(1, [0])
    ours = {name: p.grad for name, p in student_of(loop).trainable.items()}

    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    config = LoraConfig(r=4, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    plain = get_peft_model(base, config)
    theirs = dict(plain.named_parameters())
    with torch.no_grad():
        for name, parameter in student_of(loop).trainable.items():
            theirs[name].copy_(parameter)
    row = rows[0]
    labels = [i if s else -100 for i, s in zip(row.ids, row.supervised, strict=True)]
    plain(input_ids=torch.tensor([row.ids]), labels=torch.tensor([labels])).loss.backward()
    for name, gradient in ours.items():
        expected = theirs[name].grad
        assert gradient is not None
        assert expected is not None
        assert (gradient - expected).norm() / expected.norm() < 1e-5, name


def test_the_mean_is_not_rounded_to_the_precision_of_the_model(
    tiny_model: Path, rows: list[Row]
) -> None:
    """bf16 knows 1/n to 3 digits, and the whole gradient would be off by that factor."""
    loop = make_loop(tiny_model, rows, precision="bf16", lora_dropout=0.0)
    make_b_matter(loop)
    supervised = sum(sum(row.supervised) for row in rows)
    rounded = torch.tensor(1 / supervised).bfloat16().item() * supervised
    assert abs(rounded - 1) > 1e-4
    loop.gradient(1, range(8))
    student = student_of(loop)
    batch = packed([Numbered(row, 0) for row in rows], CPU, longest=512)
    parameters = list(student.trainable.values())
    sums = torch.autograd.grad(student.loss_sum(batch), parameters)
    for parameter, expected in zip(parameters, sums, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, expected / supervised, rtol=1e-5, atol=0)


def test_training_moves_the_adapter_alone_and_lowers_the_loss(
    tiny_model: Path, rows: list[Row]
) -> None:
    loop = make_loop(tiny_model, rows, epochs=12)
    base = {
        name: p.detach().clone()
        for name, p in student_of(loop).model.named_parameters()
        if not p.requires_grad
    }
    adapter = weights(loop)
    before = loop.validation_loss(rows)
    results = list(loop.steps())
    assert [result.step for result in results] == list(range(1, 13))
    assert loop.validation_loss(rows) < before - 0.1
    for name, parameter in student_of(loop).model.named_parameters():
        if parameter.requires_grad:
            assert not torch.equal(parameter, adapter[name]), name
        else:
            assert torch.equal(parameter, base[name]), name
    assert loop.counters.supervised_tokens == 12 * sum(sum(row.supervised) for row in rows)
    assert loop.counters.tokens == 12 * sum(len(row.ids) for row in rows)


def test_a_restored_loop_goes_on_to_the_same_bits(
    tiny_model: Path, rows: list[Row], tmp_path: Path
) -> None:
    changes = {"micro_batch": 2, "epochs": 2}
    unbroken = make_loop(tiny_model, rows, **changes)
    expected = list(unbroken.steps())

    first = make_loop(tiny_model, rows, **changes)
    taken = list(islice(first.steps(), 3))
    for name, data in first.state_files().items():
        (tmp_path / name).write_bytes(data)
    second = make_loop(tiny_model, rows, **changes)
    second.restore(tmp_path, first.counters)
    torch.rand(17)  # whatever drew random numbers in between does not matter
    taken += list(second.steps())

    assert [(r.step, r.loss, r.grad_norm) for r in taken] == [
        (r.step, r.loss, r.grad_norm) for r in expected
    ]
    assert all(torch.equal(weights(second)[n], w) for n, w in weights(unbroken).items())


def test_dropout_is_drawn_anew_each_step_and_repeats_with_the_seed(
    tiny_model: Path, rows: list[Row]
) -> None:
    loop = make_loop(tiny_model, rows, lora_dropout=0.5)
    make_b_matter(loop)
    losses = [loop.gradient(step, range(8)) for step in (1, 2, 1)]
    assert losses[0] != losses[1]
    assert losses[0] == losses[2]


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_it_spreads(
    tiny_model: Path, rows: list[Row], poison: float
) -> None:
    loop = make_loop(tiny_model, rows, epochs=9)
    steps = loop.steps()
    good = [next(steps).loss, next(steps).loss]
    with torch.no_grad():
        next(iter(student_of(loop).trainable.values())).fill_(poison)
    before = weights(loop)
    with pytest.raises(TrainingDiverged, match="step 3") as caught:
        next(steps)
    assert caught.value.context == {"step": 3, "last_losses": good}
    assert all(
        torch.equal(before[n].nan_to_num(), w.nan_to_num()) for n, w in weights(loop).items()
    )


def test_a_gradient_that_is_not_finite_stops_too(tiny_model: Path, rows: list[Row]) -> None:
    loop = make_loop(tiny_model, rows)
    parameter = next(iter(student_of(loop).trainable.values()))
    parameter.register_hook(lambda gradient: gradient * float("inf"))
    make_b_matter(loop)
    before = weights(loop)
    with pytest.raises(TrainingDiverged, match="gradient norm"):
        next(loop.steps())
    assert all(torch.equal(before[name], weight) for name, weight in weights(loop).items())


def test_large_gradients_are_scaled_down(tiny_model: Path, rows: list[Row]) -> None:
    loop = make_loop(tiny_model, rows, max_grad_norm=1e-3)
    assert next(loop.steps()).grad_norm > 1e-3
    clipped = [p.grad for p in student_of(loop).trainable.values() if p.grad is not None]
    norm = torch.cat([gradient.flatten() for gradient in clipped]).norm().item()
    assert norm == pytest.approx(1e-3, rel=1e-3)


def test_padding_reaches_no_other_row(tiny_model: Path, rows: list[Row]) -> None:
    loop = make_loop(tiny_model, rows, micro_batch=8)
    make_b_matter(loop)
    alone = [loop.validation_loss([row]) * sum(row.supervised) for row in rows]
    together = loop.validation_loss(rows) * sum(sum(row.supervised) for row in rows)
    assert together == pytest.approx(sum(alone), rel=1e-5)


def test_laying_leaves_the_rows_alone(rows: list[Row]) -> None:
    before = copy.deepcopy(rows)
    numbered = [Numbered(row, 0) for row in rows]
    lines = padded(numbered, CPU)
    line = packed(numbered, CPU, longest=512, multiple=128)
    assert rows == before
    assert lines.ids.shape == (8, max(len(row.ids) for row in rows))
    assert line.ids.shape[1] % 128 == 0
    assert line.borders is not None
    assert line.borders.bounds[-1] == line.ids.shape[1]
    assert line.borders.bounds.diff().max() <= 512


def test_steps_by_tokens_read_every_row_once(tiny_model: Path, rows: list[Row]) -> None:
    loop = make_loop(tiny_model, rows, batching="tokens", micro_batch=1, accumulation=2, epochs=2)
    read = [
        row
        for step in range(1, loop.schedule.total_steps + 1)
        for row in loop.schedule.rows_of(step)
    ]
    assert sorted(read) == sorted([*range(8), *range(8)])
    results = list(loop.steps())
    assert results[-1].epoch == 2.0
    assert loop.counters.tokens == 2 * sum(len(row.ids) for row in rows)


@pytest.mark.parametrize("batching", ["rows", "tokens"])
def test_shorter_rows_keep_the_schedule(tiny_model: Path, rows: list[Row], batching: str) -> None:
    """Or a run that is resumed with them would end early, or read other rows."""
    cut = [shorten(row, 128) or Row(row.id, [], [], cut=len(row.ids)) for row in rows]
    assert sum(len(row.ids) for row in cut) < sum(len(row.ids) for row in rows) / 2
    courses = []
    for some in (rows, cut):
        loop = make_loop(tiny_model, some, batching=batching, micro_batch=1, accumulation=2)
        steps = range(1, loop.schedule.total_steps + 1)
        courses.append([loop.schedule.rows_of(step) for step in steps])
    assert courses[0] == courses[1]


def test_a_step_whose_rows_could_not_be_cut_changes_nothing(
    tiny_model: Path, rows: list[Row]
) -> None:
    changes = {"micro_batch": 2, "epochs": 1, "weight_decay": 0.1}
    empty = make_loop(tiny_model, rows, **changes).schedule.rows_of(2)
    some = [Row(r.id, [], [], cut=len(r.ids)) if n in empty else r for n, r in enumerate(rows)]
    loop = make_loop(tiny_model, some, **changes)
    steps = loop.steps()
    next(steps)
    before = weights(loop)
    result = next(steps)
    assert (result.step, result.loss, result.grad_norm, result.tokens) == (2, None, None, 0)
    assert all(torch.equal(before[name], weight) for name, weight in weights(loop).items())
    assert [result.loss is not None for result in steps] == [True, True]
    assert loop.counters.step == 4
