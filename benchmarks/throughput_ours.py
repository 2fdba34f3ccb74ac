"""Our side of the training benchmarks: the worker's own loop on the rows and models of all.

Everything between the base model and the result is what a training worker runs, compilation,
dropout and the check of the forward pass included; only files and heartbeats are left out.
Several GPUs are several processes that meet at a file, as the trainer starts them.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.throughput_rows import (
    SHAPES,
    Measured,
    TokenRow,
    build_model,
    peak_memory,
    use_threads,
    versions,
)


def _tokens(per_pass: int, passes: int, **more: Any) -> dict[str, Any]:
    """Return a spec of ``passes`` packed passes of ``per_pass`` x 2,048 tokens a step."""
    return {"batching": "tokens", "micro_batch": per_pass, "accumulation": passes, **more}


SETTINGS: dict[str, dict[str, Any]] = {
    # The first trains on the same 16 rows a step as TRL without packing, the others on as many
    # tokens a step as TRL with it.
    "4x4 rows": {"spec": {"compile": "on"}, "steps": 40},
    "8k x 4 tokens": {"spec": _tokens(4, 4, compile="on"), "steps": 24},
    "8k x 4 tokens, not compiled": {"spec": _tokens(4, 4), "steps": 16},
    "8k x 4 tokens, checkpointing": {
        "spec": _tokens(4, 4, compile="on", gradient_checkpointing="on"),
        "steps": 16,
    },
    "16k x 2 tokens": {"spec": _tokens(8, 2, compile="on"), "steps": 24},
    "8k x 4 tokens, nf4": {
        "spec": _tokens(4, 4, compile="on", quantization="nf4"),
        "steps": 16,
    },
}
"""Name to setting: optimizer steps, and what differs from the shape's spec."""

CPU_SETTINGS: dict[str, dict[str, Any]] = {
    "padded": {"spec": {"packing": False}},
    "packed": {},
}
"""What is measured for ``nano``; its steps are two epochs."""


def measure(shape: str, rows: Sequence[TokenRow], setting: dict[str, Any]) -> Measured:
    """Train for ``setting["steps"]`` optimizer steps and return what it was like.

    With ``setting["world_size"]`` above 1 that many processes share each step; the speed is
    theirs together, the memory that of the fullest.
    """
    world_size = setting.get("world_size", 1)
    with tempfile.TemporaryDirectory() as folder:
        meeting_point = Path(folder) / "rendezvous"
        if world_size == 1:
            return _measure_rank(0, meeting_point, shape, rows, setting)
        context = multiprocessing.get_context("spawn")
        with context.Pool(world_size) as pool:
            jobs = [(rank, meeting_point, shape, rows, setting) for rank in range(world_size)]
            found = pool.starmap(_measure_rank, jobs, chunksize=1)
    fullest = max(found, key=lambda one: one.peak_gib or 0.0)
    return replace(found[0], peak_gib=fullest.peak_gib, reserved_gib=fullest.reserved_gib)


def _measure_rank(
    rank: int, meeting_point: Path, shape: str, rows: Sequence[TokenRow], setting: dict[str, Any]
) -> Measured:
    import torch

    from slm_core.training.engine.loop import Loop
    from slm_core.training.engine.ranks import join
    from slm_core.training.engine.student import attach
    from slm_core.training.plan import first_plan
    from slm_core.training.rows import Row

    about = SHAPES[shape]
    use_threads(shape)
    spec = _spec(shape, rows, setting)
    device = torch.device(about.device)
    if device.type == "cuda":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    ranks = join(device, rank, spec.world_size, meeting_point)

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    dtype = torch.bfloat16 if about.precision == "bf16" else torch.float32
    base = build_model(shape, attention="sdpa", nf4=spec.quantization == "nf4")
    student = attach(base, spec, device=device, precision=dtype)
    loop = Loop(student, [Row(*row) for row in rows], spec, first_plan(spec), ranks=ranks)
    if spec.compile == "on":
        loop.passes.compile()
    steps = setting["steps"]
    if loop.schedule.total_steps < steps:
        raise ValueError(f"The rows give {loop.schedule.total_steps} steps, not {steps}.")
    every = max(1, steps // 4)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    losses: list[float] = []
    norms: list[float] = []
    begun = first = half = now()
    before = loop.counters
    for result in loop.steps(lambda step: step % every == 0 or step == 1):
        if result.loss is not None and result.grad_norm is not None:
            losses.append(result.loss)
            norms.append(result.grad_norm)
        if result.step == 1:
            first = now()
        if result.step == steps // 2:
            half, before = now(), loop.counters
        if result.step == steps:
            break
    seconds = now() - half
    tokens = loop.counters.tokens - before.tokens
    learned = loop.counters.supervised_tokens - before.supervised_tokens
    peak, reserved = peak_memory(about.device)
    plan = loop.passes.plan
    notes = "" if plan == first_plan(spec) else f"passes were made smaller: {plan}"
    ranks.wait()
    ranks.leave()
    return Measured(
        tokens_per_second=tokens / seconds,
        supervised_tokens_per_second=learned / seconds,
        steps=steps,
        seconds=seconds,
        tokens=tokens,
        first_loss=losses[0],
        last_loss=losses[-1],
        grad_norm=fmean(norms),
        peak_gib=peak,
        reserved_gib=reserved,
        seconds_to_first_step=first - begun,
        notes=notes,
        versions=versions(*(("bitsandbytes",) if spec.quantization == "nf4" else ())),
    )


def _spec(shape: str, rows: Sequence[TokenRow], setting: dict[str, Any]) -> Any:
    from slm_core.training import TrainingSpec

    about = SHAPES[shape]
    fixed: dict[str, Any] = {
        "base_model": shape,
        "cep": None,
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "learning_rate": about.learning_rate,
        "micro_batch": about.micro_batch,
        "accumulation": about.accumulation,
        "max_length": about.max_length,
        "seed": 0,
        "device": about.device,
        "precision": about.precision,
        "gradient_checkpointing": "off",
        "compile": "off",
        "world_size": setting.get("world_size", 1),
    }
    spec = TrainingSpec(**(fixed | setting.get("spec", {})))
    # As many as the steps may need when each is as large as it can be.
    largest = spec.pass_tokens * spec.accumulation
    epochs = 1 + setting["steps"] * largest // sum(len(row.ids) for row in rows)
    return spec.model_copy(update={"epochs": epochs})
