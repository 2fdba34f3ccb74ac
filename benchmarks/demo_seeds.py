"""Run the demo with several seeds and print what each scored, as a Markdown table.

python benchmarks/demo_seeds.py 0 1 2 3          # runs `make demo FRESH=1 SEED=n`
python benchmarks/demo_seeds.py --reports A.json B.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HEADLINE = {"structured": "field_f1", "toolcall": "args_f1"}
ARMS = ("teacher", "student", "student_cep", "adapter")


def run_demo(seed: int) -> tuple[dict[str, Any], float]:
    """Run one demo from nothing; return its report and its seconds."""
    began = time.monotonic()
    subprocess.run(["make", "demo", "FRESH=1", f"SEED={seed}"], cwd=ROOT, check=True)
    seconds = time.monotonic() - began
    report = ROOT / ".slm" / "demo" / "report" / "report.json"
    return json.loads(report.read_text(encoding="utf-8")), seconds


def rows(report: dict[str, Any], seconds: float | None) -> list[str]:
    """Return one table row per track."""
    lines = []
    for track, metric in HEADLINE.items():
        arms = report["tracks"][track]["arms"]
        scores = " | ".join(f"{arms[arm][metric]['value']:.3f}" for arm in ARMS)
        paired = report["tracks"][track]["paired"]["adapter_vs_teacher"][metric]["difference"]
        difference = f"{paired['value']:+.3f} [{paired['low']:+.3f}, {paired['high']:+.3f}]"
        taken = f"{seconds:.0f}" if seconds is not None else ""
        cells = (report["seed"], track, scores, difference, report["outcome"], taken)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seeds", type=int, nargs="*")
    parser.add_argument("--reports", type=Path, nargs="*", default=())
    options = parser.parse_args()
    table = [
        "| seed | track | teacher F1 | student F1 | student_cep F1 | adapter F1 "
        "| adapter - teacher, paired 95 % | outcome | seconds |",
        "|" + " --- |" * 9,
    ]
    for path in options.reports:
        table += rows(json.loads(path.read_text(encoding="utf-8")), None)
    for seed in options.seeds:
        table += rows(*run_demo(seed))
    sys.stdout.write("\n".join(table) + "\n")


if __name__ == "__main__":
    main()
