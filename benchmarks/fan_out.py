"""An evaluation in one process and in two shards on a local Dask cluster: time, and same scores?

    python -m benchmarks.fan_out --rows 160

The nano student answers synthetic questions of both tracks. Each way starts from nothing; the
seconds hold the start of the workers, of torch in each, and the loading of the model.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from prefect import flow
from prefect.testing.utilities import prefect_test_harness

from slm_core.evaluation import read_details
from slm_core.presets import NANO, EvalSpec, TestSetSpec
from slm_core.records import Evaluation, sha256_hex
from slm_core.settings import Settings
from tasks._wiring import configure, traced
from tasks.dataset import make_test_set
from tasks.evaluation import evaluate_arms

WAYS = {
    "one process, 1 thread": {"shards": 1, "threads": 1},
    "one process, 2 threads": {"shards": 1, "threads": 2},
    "two workers, 1 thread each": {"shards": 2, "threads": 1},
}


@flow
def score(spec: EvalSpec, folder: Path) -> Evaluation:
    """Score the bare student."""
    with traced("eval", folder.name) as trace:
        return evaluate_arms(spec, ("student",), make_test_set(spec.test_set), None, folder, trace)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=160, help="questions of each track")
    options = parser.parse_args()
    evaluation = NANO.eval.evaluation.model_copy(update={"batch_size": 20})
    spec = NANO.eval.model_copy(
        update={
            "arms": ("student",),
            "test_set": TestSetSpec(rows_per_track=options.rows),
            "evaluation": evaluation,
        }
    )
    print("| way | seconds | answers | evaluation | details | load |")
    print("| --- | --: | --: | --- | --- | --: |")
    with (
        tempfile.TemporaryDirectory() as home,
        prefect_test_harness(server_startup_timeout=300),
    ):
        configure(Settings.from_env({"SLM_HOME": home}))
        for name, changes in WAYS.items():
            began = time.perf_counter()
            done = score(spec.model_copy(update=changes), Path(home) / name.replace(" ", "-"))
            seconds = time.perf_counter() - began
            rows = [
                row.model_copy(update={"seconds": 0.0, "cost_nanousd": None})
                for row in read_details(Path(done.details_path))
            ]
            details = sha256_hex("".join(row.model_dump_json() for row in rows))
            print(
                f"| {name} | {seconds:.0f} | {len(rows)} | {done.id[-8:]} | {details[:8]} | "
                f"{os.getloadavg()[0]:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
