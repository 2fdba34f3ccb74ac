"""What an import costs. Prefect imports every flow file for each run and each deploy.

CPU time is measured, in fresh processes, so that a busy machine does not fail the test.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOWS = sorted(path for path in (ROOT / "flows").glob("*.py") if path.stem != "__init__")
HEAVY = {"torch", "transformers", "peft", "matplotlib", "datasets", "langfuse", "openai"}

MEASURE = """
import json, runpy, sys, time
{before}
start = time.process_time()
{subject}
print(json.dumps([time.process_time() - start, sorted(m for m in sys.modules if "." not in m)]))
"""


def measure(subject: str, before: str = "") -> tuple[float, set[str]]:
    """Run ``subject`` in a fresh process; return its CPU seconds and the loaded packages."""
    script = MEASURE.format(before=before, subject=subject)
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    seconds, modules = json.loads(result.stdout.splitlines()[-1])
    return seconds, set(modules)


def test_the_package_costs_nothing() -> None:
    best = min(measure("import slm_core")[0] for _ in range(3))
    assert best < 0.1


@pytest.mark.parametrize("stage", ["capture", "dataset", "training", "evaluation", "decision"])
def test_specs_and_records_pull_in_nothing_heavy(stage: str) -> None:
    _, modules = measure(f"import slm_core.records, slm_core.settings, slm_core.{stage}.spec")
    assert modules & (HEAVY | {"sqlalchemy"}) == set()


@pytest.mark.parametrize("path", FLOWS, ids=lambda path: path.stem)
def test_a_flow_file_is_light(path: Path) -> None:
    # Prefect itself loads what `flow`, `task` and the like are made of only on first use.
    before = "import prefect\nfrom prefect import flow, task, get_client, runtime"
    subject = f"import importlib; importlib.import_module('flows.{path.stem}')"
    seconds, modules = measure(subject, before)
    assert modules & HEAVY == set()
    if seconds >= 0.5:  # one more try: the first one may have written byte code
        seconds, _ = measure(subject, before)
    assert seconds < 0.5
