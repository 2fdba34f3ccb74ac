"""Training speed and memory, ours and TRL's, on the same rows in the same session.

    python -m benchmarks.train_throughput --shape llama-3.1-8b --out results.jsonl
    python -m benchmarks.train_throughput --shape nano          # two CPU cores
    python -m benchmarks.train_throughput --shape tiny --steps 4  # dry run of every setting
    python -m benchmarks.train_throughput --table results.jsonl # the table of saved results
    python -m benchmarks.train_throughput --shape 1b --check    # and is the result right?

Each setting runs in a process of its own, one after the other, and appends one JSON line to
``--out``; a setting that fails or runs out of time leaves its error there. ``--only`` takes
names, or parts of them, such as ``ours``. The peer needs ``pip install
trl==1.16.0`` (and bitsandbytes for QLoRA) beside this project, in an environment of its own if
need be: ``--python`` names the interpreter that runs the peer's settings.

A speed counts real tokens of the second half of the steps, with the device idle at both ends.
Losses and gradient norms are checked to be finite, and every line holds a hash of the rows.
``--check`` ends with ``throughput_check``: losses and gradients against an unpacked reference.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.throughput_rows import ROOT, SHAPES, Measured, make_rows, rows_digest

SIDES = {"ours": "benchmarks.throughput_ours", "trl": "benchmarks.throughput_trl"}
CPU_EPOCHS = 2
"""On ``nano``: the first epoch warms up, the second is timed."""
RESULT = "RESULT "
_TAIL_LINES = 12
_COLUMNS = (
    "setting",
    "tokens/s",
    "supervised/s",
    "peak GiB",
    "reserved",
    "steps",
    "first step s",
    "loss",
    "grad norm",
)


def settings_of(side: str, shape: str, steps: int | None) -> dict[str, dict[str, Any]]:
    """Return the settings that ``side`` offers for ``shape``, name first."""
    module = import_module(SIDES[side])
    found = module.CPU_SETTINGS if shape == "nano" else module.SETTINGS
    return {
        f"{side} {name}": setting | ({"steps": steps} if steps else {})
        for name, setting in found.items()
    }


def run_child(options: argparse.Namespace) -> dict[str, Any]:
    """Measure one setting in this process."""
    shape, name, steps = options.shape, options.child, options.steps
    side = name.split(" ", 1)[0]
    setting = settings_of(side, shape, steps)[name]
    if options.world_size > 1:
        setting = _shared(setting, shape, options.world_size, weak=options.weak)
    rows = make_rows(shape, all_supervised=options.all_supervised)
    if shape == "nano" and not steps:
        about = SHAPES[shape]
        per_epoch = -(-len(rows) // (about.micro_batch * about.accumulation))
        setting = setting | {"steps": CPU_EPOCHS * per_epoch}
    measured: Measured = import_module(SIDES[side]).measure(shape, rows, setting)
    return asdict(measured) | {"rows": len(rows), "rows_digest": rows_digest(rows)}


def run_setting(
    name: str,
    *,
    shape: str,
    steps: int | None = None,
    all_supervised: bool = False,
    limit: float,
    python: str | None = None,
    world_size: int = 1,
    weak: bool = False,
) -> dict[str, Any]:
    """Measure one setting in a new process; its error is a result too."""
    interpreter = python if name.startswith("trl") and python else sys.executable
    command = [interpreter, "-m", "benchmarks.train_throughput", "--child", name]
    command += ["--shape", shape, "--world-size", str(world_size)]
    command += ["--steps", str(steps)] if steps else []
    command += ["--all-supervised"] if all_supervised else []
    command += ["--weak"] if weak else []
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
        # Threads that wait for each other sleep, in both sides, as our trainer has it.
        # TRL refuses to see more than one GPU without a launcher.
        env={
            "OMP_WAIT_POLICY": "passive",
            **({"CUDA_VISIBLE_DEVICES": "0"} if name.startswith("trl") else {}),
            **os.environ,
        },
    )
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        return {"error": f"{_tail(output)}\nnot finished after {limit} s"}
    found = [line for line in output.splitlines() if line.startswith(RESULT)]
    if process.returncode or not found:
        return {"error": f"exit code {process.returncode}\n{_tail(output)}"}
    return json.loads(found[-1].removeprefix(RESULT))


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return the results as a Markdown table, slowest first as they ran."""
    lines = [f"| {' | '.join(_COLUMNS)} |", "|---|" + "--:|" * (len(_COLUMNS) - 1)]
    for result in results:
        if "error" in result:
            # Its last words name the exception.
            lines.append(f"| {result['setting']} | failed: {result['error'].splitlines()[-1]} |")
            continue
        cells = (
            result["setting"],
            f"{result['tokens_per_second']:,.0f}",
            f"{result['supervised_tokens_per_second']:,.0f}",
            _number(result["peak_gib"]),
            _number(result["reserved_gib"]),
            str(result["steps"]),
            _number(result["seconds_to_first_step"]),
            f"{result['first_loss']:.3f} → {result['last_loss']:.3f}",
            f"{result['grad_norm']:.2f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    digests = {result["rows_digest"] for result in results if "rows_digest" in result}
    if len(digests) > 1:
        lines.append(f"\nNOT THE SAME ROWS: {sorted(digests)}")
    return "\n".join(lines)


def _shared(setting: dict[str, Any], shape: str, gpus: int, *, weak: bool) -> dict[str, Any]:
    """Return ``setting`` on several GPUs; weak scaling makes the step larger with them."""
    spec = dict(setting.get("spec", {}))
    if weak:
        spec["accumulation"] = gpus * spec.get("accumulation", SHAPES[shape].accumulation)
    return setting | {"world_size": gpus, "spec": spec}


def _meant(given: str, name: str, names: Sequence[str]) -> bool:
    """Whether ``given`` means ``name``: a whole name means itself, a part all that have it."""
    return given == name if given in names else given in name


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _tail(output: str) -> str:
    return "\n".join(output.strip().splitlines()[-_TAIL_LINES:])


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--only", action="append", default=[], help="part of a name; repeatable")
    parser.add_argument("--steps", type=int, help="optimizer steps; default: each setting's own")
    parser.add_argument("--rounds", type=int, default=1, help="times that all settings run")
    parser.add_argument("--all-supervised", action="store_true", help="train on prompts too")
    parser.add_argument(
        "--limit", type=float, default=300, help="seconds that one setting may take"
    )
    parser.add_argument("--python", help="interpreter for the peer's settings")
    parser.add_argument("--out", type=Path, help="file that gets one JSON line per setting")
    parser.add_argument("--check", action="store_true", help="compare with a reference at the end")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    parser.add_argument("--table", type=Path, help="print the table of a file made by --out")
    parser.add_argument("--world-size", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--weak", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = _parse()
    if options.child:
        print(RESULT + json.dumps(run_child(options)), flush=True)
        return
    if options.table:
        lines = options.table.read_text(encoding="utf-8").splitlines()
        print(table([json.loads(line) for line in lines]))
        return
    names = [name for side in SIDES for name in settings_of(side, options.shape, None)]
    wanted = [
        n for n in names if not options.only or any(_meant(o, n, names) for o in options.only)
    ]
    if options.list or not wanted:
        print("\n".join(names))
        return
    results = []
    for name in wanted * options.rounds:
        result = {"setting": name, "shape": options.shape, "machine": platform.platform()}
        result |= run_setting(
            name,
            shape=options.shape,
            steps=options.steps,
            all_supervised=options.all_supervised,
            limit=options.limit,
            python=options.python,
        )
        results.append(result)
        if options.out:
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
        print(table([result]).splitlines()[-1], flush=True)
        if "error" in result:
            print(result["error"], file=sys.stderr, flush=True)
    print(f"\n{table(results)}", flush=True)
    if options.check:
        check = [sys.executable, "-m", "benchmarks.throughput_check", "--shape", options.shape]
        sys.exit(subprocess.run(check, cwd=ROOT, check=False).returncode)


if __name__ == "__main__":
    main()
