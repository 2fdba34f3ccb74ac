"""Run every deployment once, and print what Prefect adds to the same work called directly.

python benchmarks/deployments.py                # in a stack of its own, taken down afterwards
python benchmarks/deployments.py --home .slm    # in the one that `make up` started
python benchmarks/deployments.py --full         # evaluations and retrainings at their full size
python benchmarks/deployments.py --only eval/cep compare/approaches

The nano models stand in for those of the presets, since this must run on two cores without a
GPU. Fails when a run does not end as Completed, or when prefect.yaml has a deployment that no
case here runs. Seconds: `waited` from the start that was asked for until the run was Running
(poll of the worker, a process, imports), `ran` from there to its end, `direct` the same body
without Prefect in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, cast

import psutil
import yaml

ROOT = Path(__file__).resolve().parent.parent
CLAIM = 100
STUDENT = str(ROOT / "assets" / "nano-student")
LONGEST_SECONDS = 900.0
APPROVAL = {"decision": "approve", "approver": "benchmark", "reason": "measured"}
NOT_DIRECT = frozenset({"promote/adapter"})
"""Waits for a person, which only a run of a deployment can."""


class Result(NamedTuple):
    """One deployment, run once."""

    name: str
    state: str
    green: bool
    """Whether it is a state of the type Completed, under whatever name."""
    waited: float
    ran: float
    direct: float | None = None
    """None when it was not called directly."""
    message: str = ""

    @property
    def overhead(self) -> float | None:
        return None if self.direct is None else self.ran - self.direct


class Bench:
    """A running stack, and what it is told to do."""

    def __init__(self, environ: dict[str, str], *, full: bool) -> None:
        self.environ = environ
        self.full = full
        self.entrypoints = _entrypoints()
        self._calls = 0

    def cases(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """Deployment to what makes the parameters of one run; called once for each run."""
        found: dict[str, Callable[[], dict[str, Any]]] = {
            "check-gpus/now": lambda: {},
            "ingest/spool": self._with_spool,
            "retrain/on-threshold": self._with_claim,
            "retrain/nightly": self._with_claim,
            **{
                name: partial(self._training, name.split("/")[1])
                for name in self.entrypoints
                if name.startswith("train/")
            },
            "resume/run": self._with_killed_training,
            "eval/cep": lambda: self._evaluation("cep"),
            "eval/baseline": lambda: self._evaluation("baseline"),
            "eval/berkeley": lambda: {"run_id": _fresh("eval"), "preset": "berkeley"},
            "compare/approaches": lambda: {"run_id": _fresh("compare")},
            "promote/adapter": lambda: {},
            "resume-overdue/now": lambda: {},
            "settle/routes": lambda: {},
            "status/now": lambda: {},
        }
        return {name: case for name, case in found.items() if name in self.entrypoints}

    def run(self, name: str, parameters: dict[str, Any]) -> Result:
        """Run a deployment once, through its worker."""
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.objects import FlowRun
        from prefect.deployments import run_deployment

        begun = cast(
            "FlowRun", run_deployment(name, parameters=parameters, timeout=0, as_subflow=False)
        )
        deadline = time.monotonic() + LONGEST_SECONDS
        with get_client(sync_client=True) as client:
            while True:
                run = client.read_flow_run(begun.id)
                if run.state is None or time.monotonic() > deadline:
                    return Result(name, "still at work", False, 0.0, LONGEST_SECONDS)
                if run.state.is_final():
                    break
                if run.state.is_paused():
                    client.resume_flow_run(run.id, run_input=APPROVAL)
                time.sleep(0.5)
        if run.start_time is None or run.expected_start_time is None:
            return Result(name, run.state.name, False, 0.0, 0.0)
        return Result(
            name,
            run.state.name,
            run.state.is_completed(),
            waited=(run.start_time - run.expected_start_time).total_seconds(),
            ran=run.total_run_time.total_seconds(),
            message=run.state.message or "",
        )

    def direct(self, name: str, parameters: dict[str, Any]) -> float:
        """Return the seconds of the flow's body without Prefect."""
        child = self._start_direct(name, parameters)
        output, error = child.communicate(json.dumps(parameters), timeout=LONGEST_SECONDS)
        if child.returncode != 0:
            raise SystemExit(f"{name}, called directly, failed:\n{error[-3000:]}")
        return float(json.loads(output.splitlines()[-1])["seconds"])

    def _start_direct(self, name: str, parameters: dict[str, Any]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                sys.executable,
                str(ROOT / "benchmarks/deployments_direct.py"),
                self.entrypoints[name],
            ],
            cwd=ROOT,
            env=self.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _with_spool(self) -> dict[str, Any]:
        self._leave_calls()
        return {"submit": False}

    def _with_claim(self) -> dict[str, Any]:
        """Leave a claim that nobody holds, for the run to take."""
        from slm_core.decision import DecisionSpec
        from slm_core.presets import NANO

        self._leave_calls()
        self.direct("ingest/spool", {"submit": False})
        given: dict[str, Any] = {"run_id": _fresh("retrain"), "reason": "benchmark"}
        if self.full:
            return given
        # A fixed number of rows, or each retraining would learn from more than the one before.
        dataset = NANO.dataset.model_copy(
            update={"rows": {"train": 60, "val": 10, "test": 10}, "min_examples": 80}
        )
        training = NANO.training.model_copy(update={"base_model": STUDENT, "epochs": 1})
        # Each passes, so that the adapter becomes the candidate that `promote/adapter` is for.
        decision = DecisionSpec(
            min_rows=1,
            max_deficit=1,
            max_errors=1,
            domain_floor=0,
            domain_spread=1,
            **dict.fromkeys(("exact", "f1", "valid", "precision", "recall", "name_match")),
        )
        evaluation = self._eval_spec("cep").model_copy(update={"decision": decision})
        plan = NANO.model_copy(
            update={"dataset": dataset, "training": training, "eval": evaluation}
        )
        return given | {"overrides": plan.model_dump(mode="json")}

    def _evaluation(self, preset: str) -> dict[str, Any]:
        given = {"run_id": _fresh("eval"), "preset": preset}
        if self.full:
            return given
        return given | {"overrides": self._eval_spec(preset).model_dump(mode="json")}

    def _eval_spec(self, preset: Any) -> Any:
        from slm_core.presets import EVAL_PRESETS

        spec = EVAL_PRESETS[preset]
        test_set = spec.test_set.model_copy(update={"rows_per_track": 8})
        return spec.model_copy(update={"student_model": STUDENT, "test_set": test_set})

    def _training(self, preset: Any, **changes: Any) -> dict[str, Any]:
        """Return the plan of a preset, for the nano student on the CPU."""
        from slm_core.presets import TRAIN_PRESETS

        spec = TRAIN_PRESETS[preset]
        small = {"base_model": STUDENT, "device": "cpu", "quantization": "none", "epochs": 1}
        # The nano student reads no more.
        small |= {"max_length": 1024, "shorter_lengths": ()}
        training = spec.training.model_copy(update=small | changes)
        plan = spec.model_copy(update={"training": training, "rows_from": "newest"})
        return {
            "run_id": _fresh("train"),
            "preset": preset,
            "overrides": plan.model_dump(mode="json"),
        }

    def _with_killed_training(self) -> dict[str, Any]:
        """Kill a training after its first checkpoint, for `resume/run` to go on with."""
        parameters = self._training("llama-cep", save_every_steps=1, epochs=3)
        child = self._start_direct("train/llama-cep", parameters)
        assert child.stdin is not None
        child.stdin.write(json.dumps(parameters))
        child.stdin.close()
        folder = Path(self.environ["SLM_HOME"]) / "runs" / parameters["run_id"]
        deadline = time.monotonic() + 120
        while not any(folder.glob("training/checkpoints/*/manifest.json")):
            if child.poll() is not None or time.monotonic() > deadline:
                child.kill()
                error = child.stderr.read() if child.stderr is not None else ""
                raise SystemExit(f"no checkpoint to resume from in {folder}:\n{error[-3000:]}")
            time.sleep(0.1)
        child.send_signal(signal.SIGKILL)
        child.wait()
        return {"run_id": parameters["run_id"]}

    def _leave_calls(self) -> None:
        """Leave one claim's worth of captured calls in the spool."""
        from slm_core.records import TRACKS
        from slm_core.testing.workload import answered, generate

        self._calls += 1
        seed = 10_000 + int(time.time()) + self._calls
        calls = [
            answered(example, _fresh("call"), created_at=datetime.now(UTC))
            for track in TRACKS
            for example in generate(seed, CLAIM // len(TRACKS), "traffic", track)
        ]
        spool = Path(self.environ["SLM_SPOOL_DIR"])
        spool.mkdir(parents=True, exist_ok=True)
        lines = "".join(call.model_dump_json() + "\n" for call in calls)
        (spool / f"{_fresh('calls')}.jsonl").write_text(lines, encoding="utf-8")


_numbers = iter(range(1, 1_000_000))


def _fresh(what: str) -> str:
    return f"bench-{what}-{os.getpid()}-{next(_numbers)}"


def _entrypoints() -> dict[str, str]:
    """Return ``flow/deployment`` to entrypoint, as prefect.yaml declares them."""
    from prefect.flows import load_flow_from_entrypoint

    declared = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    os.chdir(ROOT)
    return {
        f"{load_flow_from_entrypoint(one['entrypoint']).name}/{one['name']}": one["entrypoint"]
        for one in declared
    }


def measure(
    bench: Bench, name: str, parameters: Callable[[], dict[str, Any]], *, once: bool
) -> Result:
    """Run one deployment, then the same directly."""
    result = bench.run(name, parameters())
    if once or name in NOT_DIRECT:
        return result
    return result._replace(direct=bench.direct(name, parameters()))


def table(results: list[Result]) -> str:
    lines = [
        "| deployment | state | waited, s | ran, s | direct, s | overhead, s |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| `{one.name}` | {one.state} | {one.waited:.1f} | {one.ran:.1f} "
        f"| {_figure(one.direct)} | {_figure(one.overhead, '+')} |"
        for one in results
    ]
    return "\n".join(lines)


def _figure(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.1f}"


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--once", action="store_true", help="without the direct calls")
    parser.add_argument("--only", nargs="*")
    options = parser.parse_args()

    from slm_core.local_stack import LocalStack
    from slm_core.settings import Settings

    began = time.monotonic()
    home = options.home or Path(tempfile.mkdtemp(prefix="slm-deployments-"))
    home.chmod(0o755)  # PostgreSQL runs as another user when we are root
    stack = LocalStack(Settings.from_env({**os.environ, "SLM_HOME": str(home)}), ROOT, say)
    try:
        stack.up()
        up_seconds = time.monotonic() - began
        results = run_all(stack, options)
    finally:
        if options.home is None:
            stack.down()
            shutil.rmtree(home, ignore_errors=True)
    say(table(results))
    total = time.monotonic() - began
    inside = sum(one.waited + one.ran for one in results)
    say(
        f"\n{len(results)} deployments; `make up` {up_seconds:.0f} s, their runs {inside:.0f} s, "
        f"{total:.0f} s in all."
    )
    overheads = [one.overhead for one in results if one.overhead is not None]
    if overheads:
        say(f"Overhead: median {median(overheads):.1f} s, at most {max(overheads):.1f} s.")
    red = [f"{one.name}: {one.state}: {one.message}" for one in results if not one.green]
    if red:
        raise SystemExit("not green:\n" + "\n".join(red))


def run_all(stack: Any, options: argparse.Namespace) -> list[Result]:
    worker = next(part for part in stack.status() if part.name == "worker-gpu")
    environ = psutil.Process(worker.process.pid).environ()
    os.environ["PREFECT_API_URL"] = environ["PREFECT_API_URL"]
    from prefect.client.orchestration import get_client

    bench = Bench(environ, full=options.full)
    cases = bench.cases()
    missing = sorted(bench.entrypoints.keys() - cases.keys())
    if missing:
        raise SystemExit(f"no case for {', '.join(missing)}: add one to Bench.cases")
    results: list[Result] = []
    with get_client(sync_client=True) as client:
        # Its schedule would take the calls that a case leaves in the spool.
        spool = client.read_deployment_by_name("ingest/spool")
        client.pause_deployment(spool.id)
        try:
            for name in options.only or cases:
                one = measure(bench, name, cases[name], once=options.once)
                results.append(one)
                say(f"{table([one]).splitlines()[-1]} {'' if one.green else one.message}")
        finally:
            client.resume_deployment(spool.id)
    return results


if __name__ == "__main__":
    main()
