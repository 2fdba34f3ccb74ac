"""Training speed on 1, 2 and 4 GPUs of one machine.

    python -m benchmarks.scaling --shape llama-3.1-8b --gpus 1 2 4 --out scaling.jsonl
    python -m benchmarks.scaling --shape tiny --gpus 1 2 --steps 4     # two CPU processes

``strong`` keeps the optimizer step as it is and shares it: what a user gains by adding GPUs.
``weak`` gives every GPU as many passes a step as one had. Efficiency is the speed per GPU over
that of one. Each number of GPUs runs in processes of its own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.throughput_rows import SHAPES
from benchmarks.train_throughput import run_setting, settings_of

SETTING = "ours 8k x 4 tokens"


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return the results as a Markdown table."""
    lines = [
        "| scaling | GPUs | tokens/s | per GPU | efficiency | peak GiB | loss |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    alone = {r["scaling"]: r["tokens_per_second"] for r in results if r.get("gpus") == 1 and _ok(r)}
    for result in results:
        if not _ok(result):
            why = result["error"].splitlines()[-1]
            lines.append(f"| {result['scaling']} | {result['gpus']} | failed: {why} |")
            continue
        each = result["tokens_per_second"] / result["gpus"]
        one = alone.get(result["scaling"])
        cells = (
            result["scaling"],
            str(result["gpus"]),
            f"{result['tokens_per_second']:,.0f}",
            f"{each:,.0f}",
            f"{each / one:.0%}" if one else "",
            f"{result['peak_gib']:.1f}",
            f"{result['first_loss']:.3f} → {result['last_loss']:.3f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _ok(result: dict[str, Any]) -> bool:
    return "error" not in result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="llama-3.1-8b")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--scaling", nargs="+", choices=("strong", "weak"), default=["strong"])
    parser.add_argument("--setting", default=SETTING, help=f"one of ours; default {SETTING!r}")
    parser.add_argument("--steps", type=int, help="optimizer steps; default: the setting's own")
    parser.add_argument("--limit", type=float, default=300, help="seconds that one run may take")
    parser.add_argument("--out", type=Path, help="file that gets one JSON line per run")
    options = parser.parse_args()
    if options.setting not in settings_of("ours", options.shape, None):
        parser.error(f"no such setting; see --list of train_throughput: {options.setting}")
    results = []
    for scaling in options.scaling:
        for gpus in options.gpus:
            result = {"scaling": scaling, "gpus": gpus, "setting": options.setting}
            result |= run_setting(
                options.setting,
                shape=options.shape,
                steps=options.steps,
                limit=options.limit,
                world_size=gpus,
                weak=scaling == "weak",
            )
            results.append(result)
            if options.out:
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(result) + "\n")
            print(table(results).splitlines()[-1], flush=True)
    print(f"\n{table(results)}")


if __name__ == "__main__":
    main()
