"""Running out of memory inside a pass, injected where CUDA would report it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from slm_core.errors import OutOfGpuMemory
from slm_core.prompting.prefix import get_prefix
from slm_core.prompting.render import Renderer
from slm_core.testing.records import make_example
from slm_core.training import TrainingSpec
from slm_core.training.engine.batches import Numbered
from slm_core.training.engine.loop import Loop
from slm_core.training.engine.memory import is_out_of_memory
from slm_core.training.engine.ranks import Ranks
from slm_core.training.engine.student import load_student
from slm_core.training.plan import first_plan
from slm_core.training.rows import Row

Told = list[tuple[int, str]]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def rows(tiny_model: Path) -> list[Row]:
    renderer = Renderer(AutoTokenizer.from_pretrained(tiny_model), get_prefix("compact"))
    examples = [make_example(10**number, "toolcall") for number in range(8)]
    return [Row(e.id, *renderer.example(e.prompt, e.tools, e.completion)) for e in examples]


def make_loop(
    model: Path, rows: list[Row], ranks: Ranks | None = None, **changes: Any
) -> tuple[Loop, Told]:
    values = {
        "base_model": str(model),
        "max_length": 512,
        "lora_r": 4,
        "lora_dropout": 0.2,
        "micro_batch": 8,
        "accumulation": 1,
        "epochs": 4,
        "learning_rate": 1e-2,
        "device": "cpu",
    }
    spec = TrainingSpec(**(values | changes))
    loop = Loop(load_student(model, spec), rows, spec, first_plan(spec), ranks=ranks)
    told: Told = []
    loop.passes.on_recovery = lambda step, rung, message, facts: told.append((step, rung))
    return loop, told


def fail_above(loop: Loop, tokens: int, where: str) -> Callable[[], None]:
    """Let the second decoder layer run out of memory when a pass has more than ``tokens``.

    Checkpointing halves what a pass needs.
    """
    student = loop._student

    def too_much(hidden: torch.Tensor) -> bool:
        limit = tokens * (2 if student.checkpointing else 1)
        return student.model.training and hidden.shape[0] * hidden.shape[1] > limit

    def forward(module: Any, inputs: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if not too_much(hidden):
            return
        if where == "forward":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        def backward(gradient: torch.Tensor) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        hidden.register_hook(backward)

    # The first layer: by then the gradients of the later ones have been computed.
    handle = student.layers[0].register_forward_hook(forward)
    return handle.remove


def trained(loop: Loop) -> tuple[list[float | None], dict[str, torch.Tensor]]:
    losses = [result.loss for result in loop.steps()]
    return losses, {n: p.detach().clone() for n, p in loop._student.trainable.items()}


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_pass_that_runs_out_of_memory_is_split_and_nothing_changes(
    tiny_model: Path, rows: list[Row], where: str, packing: bool
) -> None:
    expected, weights = trained(make_loop(tiny_model, rows, packing=packing)[0])
    loop, told = make_loop(tiny_model, rows, packing=packing)
    total = sum(len(row.ids) for row in rows)
    fail_above(loop, total // 3, where)
    losses, after = trained(loop)
    assert told[0] == (1, "split")
    assert all(step == 1 for step, _ in told)  # the smaller passes stay
    assert losses == pytest.approx(expected, rel=1e-5)
    for name, weight in weights.items():
        assert (after[name] - weight).norm() < 1e-3 * weight.norm() + 1e-6, name


def test_a_filled_pass_is_first_made_smaller_without_a_row_less(
    tiny_model: Path, rows: list[Row]
) -> None:
    """Passes of one length are filled up; the filling needs memory too."""
    few = rows[:2]
    expected, _ = trained(make_loop(tiny_model, few, batching="tokens")[0])
    loop, told = make_loop(tiny_model, few, batching="tokens")
    loop.passes.one_length = True
    most = loop.passes.plan.pass_tokens
    assert sum(len(row.ids) for row in few) < most // 2
    fail_above(loop, most // 2, "forward")
    losses, _ = trained(loop)
    assert told == [(1, "split")]
    assert loop.passes.plan.pass_tokens == most // 2
    assert losses == pytest.approx(expected, rel=1e-5)


def test_a_single_row_gets_checkpointing_and_then_gives_up(
    tiny_model: Path, rows: list[Row]
) -> None:
    longest = max(len(row.ids) for row in rows)
    expected, _ = trained(make_loop(tiny_model, rows)[0])
    loop, told = make_loop(tiny_model, rows)
    fail_above(loop, longest - 1, "forward")
    losses, _ = trained(loop)
    assert told[-1] == (1, "gradient_checkpointing")
    assert losses == pytest.approx(expected, rel=1e-5)
    assert loop.passes.plan.gradient_checkpointing

    loop, told = make_loop(tiny_model, rows)
    before = {n: p.detach().clone() for n, p in loop._student.trainable.items()}
    fail_above(loop, longest // 2 - 1, "backward")
    with pytest.raises(OutOfGpuMemory, match=r"single row of \d+ tokens"):
        next(loop.steps())
    after = loop._student.trainable
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert loop.counters.step == 0


def test_checkpointing_can_be_forbidden(tiny_model: Path, rows: list[Row]) -> None:
    loop, told = make_loop(tiny_model, rows, gradient_checkpointing="off")
    fail_above(loop, 1, "forward")
    with pytest.raises(OutOfGpuMemory):
        next(loop.steps())
    assert {rung for _, rung in told} == {"split"}


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA",
        "Triton Error [CUDA]: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "NCCL error ... Cuda failure 2 'out of memory'",
    ],
)
def test_every_library_has_its_own_words_for_it(words: str) -> None:
    assert is_out_of_memory(RuntimeError(words))


@pytest.mark.parametrize("words", ["CUDA error: unknown error", "shape mismatch", ""])
def test_other_errors_are_not_taken_for_it(words: str) -> None:
    assert not is_out_of_memory(RuntimeError(words))
    assert not is_out_of_memory(MemoryError())


def test_another_error_in_a_pass_goes_through(tiny_model: Path, rows: list[Row]) -> None:
    loop, _ = make_loop(tiny_model, rows)

    def crash(*_: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    loop._student.layers[0].register_forward_hook(crash)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        next(loop.steps())


def test_a_trial_pass_is_made_smaller_until_it_fits(tiny_model: Path, rows: list[Row]) -> None:
    loop, told = make_loop(tiny_model, rows)
    longest = max(len(row.ids) for row in rows)
    fail_above(loop, longest, "forward")
    loop.passes.try_longest([Numbered(row, 0) for row in rows])
    assert {rung for _, rung in told} == {"split"}
    assert loop.passes.plan.pass_tokens < 2 * longest
    # Whether the smallest one fits is for the first step to say.
    loop, told = make_loop(tiny_model, rows)
    fail_above(loop, 1, "forward")
    loop.passes.try_longest([Numbered(row, 0) for row in rows])
    assert told[-1] == (0, "gradient_checkpointing")


def test_a_trial_pass_that_left_other_workers_waiting_ends_the_attempt(
    tiny_model: Path, rows: list[Row]
) -> None:
    """Their next fetch of a layer would meet another one of ours."""
    loop, told = make_loop(tiny_model, rows, ranks=Ranks(0, 2), world_size=2, shard=True)
    fail_above(loop, 1, "backward")
    with pytest.raises(OutOfGpuMemory):
        loop.passes.try_longest([Numbered(row, 0) for row in rows])
    assert told == []
