"""What running out of GPU memory costs: real CUDA errors, caused by a cap on the allocator.

    python -m benchmarks.oom_recovery --out oom.jsonl      # one GPU

First in the middle of a step: a 1 B shape trains, and after step 3 the process may use only a
share of what it needed so far (``torch.cuda.set_per_process_memory_fraction``). The same rows
are read again in smaller passes; nothing is lost, and the losses stay those of the run without
a cap. Then whole runs through ``train()``, each under a tighter cap from the beginning: which
rungs of the ladder they take until they finish, or stop.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.throughput_rows import NANO_STUDENT, build_model, make_rows, workload_examples

SHAPE = "1b"
STEPS, CAPPED_AFTER = 10, 3
SHARES = (None, 0.85, 0.6, 0.35)
LADDER_SHARES = (None, 0.6, 0.16, 0.1, 0.08)
LONG_PROMPT_WORDS = 240


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--skip-ladder", action="store_true")
    options = parser.parse_args()
    results = chain(in_the_middle(), () if options.skip_ladder else down_the_ladder())
    for result in results:
        if options.out:  # at once: the machine may be gone before the last one is done
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")


def in_the_middle() -> Iterator[dict[str, Any]]:
    """Tighten the cap after step 3 of 10."""
    print("| cap of the peak | rungs | steps lost | its step | a later step | loss difference |")
    print("|--:|---|--:|--:|--:|--:|")
    first: dict[str, Any] = {}
    peak = 0.0
    for share in SHARES:
        result = _train_capped(share, peak)
        peak = peak or result["peak_gib"]
        first = first or result
        pairs = zip(result["losses"], first["losses"], strict=True)
        result["loss_difference"] = max(abs(a - b) for a, b in pairs)
        usual = median(first["seconds"][CAPPED_AFTER:])
        # In usual steps: the one in which memory ran out, and those after it, in smaller passes.
        result["step_of_error"] = result["seconds"][CAPPED_AFTER] / usual
        result["later_step"] = median(result["seconds"][CAPPED_AFTER + 1 :]) / usual
        rungs = ", ".join(result["rungs"]) or "none"
        print(
            f"| {share or 'none'} | {rungs} | {STEPS - result['steps']} | "
            f"{result['step_of_error']:.2f} | {result['later_step']:.2f} | "
            f"{result['loss_difference']:.1e} |",
            flush=True,
        )
        yield result


def _train_capped(share: float | None, peak_gib: float) -> dict[str, Any]:
    import torch

    from slm_core.training import TrainingSpec
    from slm_core.training.engine.loop import Loop
    from slm_core.training.engine.student import attach
    from slm_core.training.plan import first_plan
    from slm_core.training.rows import Row

    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    spec = TrainingSpec(
        base_model=SHAPE,
        cep=None,
        batching="tokens",
        micro_batch=4,
        accumulation=4,
        epochs=2,
        learning_rate=2e-4,
        device="cuda",
    )
    device = torch.device("cuda")
    base = build_model(SHAPE, attention="sdpa")
    student = attach(base, spec, device=device, precision=torch.bfloat16)
    loop = Loop(student, [Row(*row) for row in make_rows(SHAPE)[:600]], spec, first_plan(spec))
    rungs: list[str] = []
    loop.passes.on_recovery = lambda step, rung, message, facts: rungs.append(f"{rung}@{step}")
    losses, seconds = [], []
    began = time.perf_counter()
    for result in loop.steps():
        torch.cuda.synchronize()
        losses.append(result.loss)
        seconds.append(time.perf_counter() - began)
        if result.step == CAPPED_AFTER and share is not None:
            total = torch.cuda.get_device_properties(device).total_memory
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(share * peak_gib * 2**30 / total)
        if result.step == STEPS:
            break
        began = time.perf_counter()
    return {
        "share": share,
        "steps": len(losses),
        "losses": losses,
        "seconds": seconds,
        "rungs": rungs,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
    }


def down_the_ladder() -> Iterator[dict[str, Any]]:
    """Train whole runs under tighter and tighter caps."""
    import shutil

    from slm_core.errors import SlmError
    from slm_core.records import Attempt
    from slm_core.training import TrainingSpec, train

    print("\n| cap, MiB | ended | in the worker | by the parent | attempts | last loss |")
    print("|--:|---|---|---|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        model = _write_model(home / "model")
        dataset = home / "dataset"
        dataset.mkdir()
        lines = [_with_long_prompt(one).model_dump_json() + "\n" for one in workload_examples()]
        (dataset / "train.jsonl").write_text("".join(lines[:64]), encoding="utf-8")
        peak, total = 0, _total_memory()
        for share in LADDER_SHARES:
            spec = TrainingSpec(
                base_model=str(model),
                max_length=2048,
                epochs=2,
                micro_batch=4,
                accumulation=2,
                device="cuda",
                compile="off",
                shorter_lengths=(1024, 512),
                gpu_memory_fraction=share and share * peak / total,
            )
            attempts: dict[int, Attempt] = {}

            def keep(attempt: Attempt, known: dict[int, Attempt] = attempts) -> None:
                known[attempt.number] = attempt

            run = home / f"run-{share}"
            ended, loss = "finished", None
            try:
                adapter = train(
                    spec,
                    dataset_path=dataset,
                    dataset_id="d",
                    run_dir=run,
                    run_id="r",
                    on_attempt=keep,
                )
                loss = adapter.summary["last_loss"]
                peak = peak or adapter.summary["peak_gpu_bytes"]
            except SlmError as error:
                ended = type(error).__name__
            result = {
                "share": share,
                "cap_mib": None if share is None else round(share * peak / 2**20),
                "ended": ended,
                "recoveries": _rungs(run),
                "changes": list(attempts[max(attempts)].plan["changes"]),
                "faults": [a.fault.kind for a in attempts.values() if a.fault],
                "attempts": len(attempts),
                "last_loss": loss,
            }
            said = "" if loss is None else f"{loss:.4f}"
            print(
                f"| {result['cap_mib'] or 'none'} | {ended} | {_counted(result['recoveries'])} | "
                f"{'; '.join(result['changes'])} | {len(attempts)} | {said} |",
                flush=True,
            )
            shutil.rmtree(run)
            yield result


def _write_model(folder: Path) -> Path:
    """Save a random model of 0.6 B parameters with the nano student's tokenizer."""
    import shutil

    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    known = json.loads((NANO_STUDENT / "config.json").read_text(encoding="utf-8"))
    config = LlamaConfig(
        vocab_size=known["vocab_size"],
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=12,
        num_attention_heads=16,
        num_key_value_heads=8,
        max_position_embeddings=2048,
        bos_token_id=known.get("bos_token_id"),
        eos_token_id=known.get("eos_token_id"),
        pad_token_id=known.get("pad_token_id"),
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    for file in NANO_STUDENT.iterdir():
        if "token" in file.name or file.suffix == ".jinja":
            shutil.copy(file, folder)
    del model
    torch.cuda.empty_cache()
    return folder


def _with_long_prompt(example: Any) -> Any:
    """Return ``example`` with so much said before it that a shorter row cuts the prompt."""
    *before, asked = example.prompt
    said = " ".join(f"note {number}" for number in range(LONG_PROMPT_WORDS))
    longer = asked.model_copy(update={"content": f"{said}. {asked.content}"})
    return example.model_copy(update={"prompt": (*before, longer)})


def _total_memory() -> int:
    import torch

    return torch.cuda.get_device_properties(0).total_memory


def _rungs(run: Path) -> list[str]:
    path = run / "recoveries.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line)["rung"] for line in path.read_text("utf-8").splitlines()]


def _counted(rungs: Sequence[str]) -> str:
    return ", ".join(f"{rung} x{rungs.count(rung)}" for rung in dict.fromkeys(rungs))


if __name__ == "__main__":
    main()
