"""Whether the fast way computes the right thing: ours against plain PEFT, unpacked, with sdpa.

    python -m benchmarks.throughput_check --shape 1b
    python -m benchmarks.throughput_check --shape tiny     # on a CPU

Both train the same adapter on the same rows, without dropout. The reference reads padded rows
with an attention mask through transformers' and PEFT's own forward pass and torch's
cross-entropy. Once it runs in float32: that is the truth. Once in the precision of ours: its
distance from the truth is what rounding costs anyone. Ours must be no farther off than
``TOLERATED`` times that.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.throughput_rows import SHAPES, TokenRow, build_model, make_rows, use_threads

TOLERATED = 1.5
STEPS = 10
LEARNING_RATE = 2e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    use_threads(options.shape)
    rows = make_rows(options.shape)[: SHAPES[options.shape].micro_batch * 4 * options.steps]
    import torch

    exact = _reference(options.shape, rows, options.steps, torch.float32)
    low = torch.bfloat16 if SHAPES[options.shape].precision == "bf16" else torch.float32
    plain = _reference(options.shape, rows, options.steps, low)
    ours = _ours(options.shape, rows, options.steps, low)
    result = {
        "shape": options.shape,
        "losses_float32": exact[0],
        "losses_plain": plain[0],
        "losses_ours": ours[0],
        "loss_error_plain": _largest(plain[0], exact[0]),
        "loss_error_ours": _largest(ours[0], exact[0]),
        "gradient_error_plain": _distance(plain[1], exact[1]),
        "gradient_error_ours": _distance(ours[1], exact[1]),
    }
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result), encoding="utf-8")
    for kind in ("loss", "gradient"):
        mine, theirs = result[f"{kind}_error_ours"], result[f"{kind}_error_plain"]
        assert mine <= max(TOLERATED * theirs, 2e-4), f"{kind}: {mine} against {theirs}"
    print("ours is as close to float32 as plain PEFT is")


def _spec(shape: str, steps: int) -> Any:
    from slm_core.training import TrainingSpec

    about = SHAPES[shape]
    return TrainingSpec(
        base_model=shape,
        cep=None,
        lora_dropout=0.0,
        epochs=1,
        learning_rate=LEARNING_RATE,
        micro_batch=about.micro_batch,
        accumulation=4,
        max_length=about.max_length,
        seed=0,
        device=about.device,  # type: ignore[arg-type]
        precision=about.precision,  # type: ignore[arg-type]
        warmup_ratio=0.0,
    )


def _ours(shape: str, rows: Sequence[TokenRow], steps: int, dtype: Any) -> tuple[Any, Any]:
    """Return the losses, and the first step's gradient, of our loop."""
    import torch

    from slm_core.training.engine.loop import Loop
    from slm_core.training.engine.student import attach
    from slm_core.training.plan import first_plan
    from slm_core.training.rows import Row

    spec = _spec(shape, steps)
    device = torch.device(spec.device)
    student = attach(build_model(shape, attention="sdpa"), spec, device=device, precision=dtype)
    _make_matter(student.trainable)
    loop = Loop(student, [Row(*row) for row in rows], spec, first_plan(spec))
    if device.type == "cuda":
        loop.passes.compile()
    losses, first = [], None
    for result in loop.steps():
        losses.append(result.loss)
        if first is None:
            # Clipping has scaled it.
            scale = max(1.0, result.grad_norm)
            first = {n: p.grad.detach().cpu() * scale for n, p in student.trainable.items()}
        if result.step == steps:
            break
    return losses, first


def _reference(shape: str, rows: Sequence[TokenRow], steps: int, dtype: Any) -> tuple[Any, Any]:
    """The same by transformers and PEFT alone, one padded row at a time."""
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.nn.functional import cross_entropy

    from slm_core.training.schedule import Schedule

    spec = _spec(shape, steps)
    base = build_model(shape, attention="sdpa").to(dtype)
    torch.manual_seed(spec.seed)
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for parameter in trainable.values():
        parameter.data = parameter.data.float()
    _make_matter(trainable)
    model.train()
    schedule = Schedule([len(row.ids) for row in rows], spec)
    optimizer = torch.optim.AdamW(trainable.values(), lr=LEARNING_RATE, weight_decay=0.0)
    losses, first = [], None
    for step in range(1, steps + 1):
        chosen = [rows[n] for n in schedule.rows_of(step)]
        total = sum(sum(row.supervised[1:]) for row in chosen)
        optimizer.zero_grad()
        loss = 0.0
        for row in chosen:
            ids = torch.tensor([row.ids], device=spec.device)
            learned = torch.tensor(row.supervised[1:], device=spec.device)
            context = torch.autocast(ids.device.type, dtype, enabled=dtype != torch.float32)
            with context:
                scores = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            share = cross_entropy(
                scores[0, :-1][learned].float(), ids[0, 1:][learned], reduction="sum"
            )
            (share / total).backward()
            loss += share.item() / total
        if first is None:
            first = {n: p.grad.detach().cpu().clone() for n, p in trainable.items()}
        torch.nn.utils.clip_grad_norm_(trainable.values(), spec.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate(step)
        optimizer.step()
        losses.append(loss)
    return losses, first


def _make_matter(trainable: dict[str, Any]) -> None:
    """B matrices begin at zero; give every gradient something to be wrong about."""
    import torch

    generator = torch.Generator().manual_seed(1)
    for name, parameter in sorted(trainable.items()):
        if "lora_B" in name:
            noise = torch.randn(parameter.shape, generator=generator) * 0.01
            parameter.data.copy_(noise)


def _largest(found: Sequence[float], right: Sequence[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(found, right, strict=True))


def _distance(found: dict[str, Any], right: dict[str, Any]) -> float:
    off = sum(float((found[n].double() - right[n].double()).pow(2).sum()) for n in right)
    size = sum(float(g.double().pow(2).sum()) for g in right.values())
    return (off / size) ** 0.5


if __name__ == "__main__":
    main()
