"""What an import costs. Prefect imports every flow file for each run and each deploy.

CPU time is measured, in fresh processes. A busy machine doubles that too, so a flow file is
weighed against Prefect itself, which the same process has just imported.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
FLOWS = sorted(path for path in (ROOT / "flows").glob("*.py") if path.stem != "__init__")
HEAVY = {"torch", "transformers", "peft", "matplotlib", "datasets", "langfuse", "openai"}

LIGHT = 0.45
"""Of what importing Prefect costs; .3 was measured, on a quiet machine (0.3 s) and a busy one."""

MEASURE = """
import json, runpy, sys, time
first = time.process_time()
{before}
start = time.process_time()
{subject}
end = time.process_time()
print(json.dumps([start - first, end - start, sorted(m for m in sys.modules if "." not in m)]))
"""


class Cost(NamedTuple):
    """CPU seconds of what came before and of the subject, and the packages loaded then."""

    before: float
    seconds: float
    modules: set[str]


def measure(subject: str, before: str = "") -> Cost:
    """Run ``before`` and ``subject`` in a fresh process."""
    script = MEASURE.format(before=before, subject=subject)
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    first, seconds, modules = json.loads(result.stdout.splitlines()[-1])
    return Cost(first, seconds, set(modules))


def test_the_package_costs_nothing() -> None:
    best = min(measure("import slm_core").seconds for _ in range(3))
    assert best < 0.1


@pytest.mark.parametrize("stage", ["capture", "dataset", "training", "evaluation", "decision"])
def test_specs_and_records_pull_in_nothing_heavy(stage: str) -> None:
    cost = measure(f"import slm_core.records, slm_core.settings, slm_core.{stage}.spec")
    assert cost.modules & (HEAVY | {"sqlalchemy"}) == set()


@pytest.mark.parametrize("path", FLOWS, ids=lambda path: path.stem)
def test_a_flow_file_is_light(path: Path) -> None:
    # Prefect itself loads what `flow`, `task` and the like are made of only on first use.
    before = "import prefect\nfrom prefect import flow, task, get_client, runtime"
    subject = f"import importlib; importlib.import_module('flows.{path.stem}')"
    cost = measure(subject, before)
    assert cost.modules & HEAVY == set()
    if (
        cost.seconds >= LIGHT * cost.before
    ):  # one more try: the first one may have written byte code
        cost = measure(subject, before)
    assert cost.seconds < LIGHT * cost.before
