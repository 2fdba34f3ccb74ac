"""Kill what runs the service, at random moments; every claim must still be trained on once.

    python -m benchmarks.chaos --kills 30 --out chaos.jsonl
    python -m benchmarks.chaos --table CHAOS.md --out chaos.jsonl

A real stack runs small retrainings, one claim after the other, and in each something is killed
with SIGKILL: the flow's process, the training worker, the Prefect worker (now and then with
SIGTERM, as a deployment does), that worker and the flow together (a machine that dies), the Prefect
server, or PostgreSQL. Dead parts of
the stack are started again some seconds later, as a supervisor would. Nothing else is done: the
run must come to its end by itself. One that has not after ``--patience`` seconds is resumed as a
person would do it, and the row says so.

Rows are appended to ``--out``: a broken-off series is gone on with. Exits with 1 when a claim was
lost, trained on twice, or left a process behind.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import httpx
import psutil

from benchmarks.chaos_stack import CALLS_PER_CLAIM, Service
from slm_core.errors import SlmError
from slm_core.local_stack.processes import MARKER
from slm_core.records import Claim, ClaimState

T = TypeVar("T")
Kind = Literal["flow", "trainer", "worker", "machine", "server", "database"]
Stage = Literal["starting", "before training", "training", "after training"]

STAGES: tuple[Stage, ...] = (
    "starting",
    "before training",
    "training",
    "training",
    "after training",
)
_DEAD = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
_POLL_SECONDS = 0.2
_LONG_SECONDS = 900.0


@dataclass
class Row:
    """One kill, and what became of the claim."""

    number: int
    kind: Kind
    stage: str
    """Where it hit."""
    killed: list[str] = field(default_factory=list)
    noticed: str = ""
    noticed_seconds: float | None = None
    finished: str = ""
    """Who went on with the run."""
    seconds: float | None = None
    """From the kill to the end of the run."""
    attempts: int = 0
    """Times that the flow run was begun."""
    problems: list[str] = field(default_factory=list)


def strike(
    service: Service,
    number: int,
    kind: Kind,
    rng: random.Random,
    *,
    patience: float,
    stage: Stage | None = None,
) -> Row:
    """Train on one claim, kill something meanwhile, and see how it ends."""
    claim = new_claim(service)
    run_id = _wait(lambda: run_of(service, claim), _LONG_SECONDS, "a retrain run")
    wanted = stage or ("training" if kind == "trainer" else rng.choice(STAGES))
    if kind in ("flow", "machine") and wanted == "starting":
        wanted = "before training"  # there is no such process yet
    _wait_for_stage(service, run_id, wanted)
    time.sleep(rng.uniform(0.0, 1.5))
    row = Row(number, kind, _stage(service, run_id))
    at = time.time()
    row.killed = _kill(service, run_id, kind, rng)
    back = at + rng.uniform(1.0, 8.0)
    asked = _wait_for_end(service, run_id, claim, at, back, patience, row)
    _judge(service, run_id, claim, at, asked, row)
    return row


def new_claim(service: Service) -> Claim:
    """Capture the calls of one more claim and let ``ingest/spool`` find them."""
    with service.store() as store:
        before = {claim.id for claim in store.claims.list()}
    service.spool_claim()
    service.start("ingest/spool")

    def made() -> Claim | None:
        with service.store() as store:
            return next((c for c in store.claims.list() if c.id not in before), None)

    return _wait(made, _LONG_SECONDS, "a claim")


def run_of(service: Service, claim: Claim) -> str | None:
    """Return the flow run that was started for a claim, once there is one."""
    wanted = {"flow_runs": {"idempotency_key": {"any_": [f"retrain-{claim.id}-0"]}}}
    found = service.ask("POST", "/flow_runs/filter", wanted)
    return found[0]["id"] if found else None


def _stage(service: Service, run_id: str) -> Stage:
    order = service.order(run_id)
    folder = service.home / "runs" / run_id / "training"
    if not order:
        return "starting"
    if not order["parts"]:
        return "before training"
    return "after training" if (folder / "adapter").exists() else "training"


def _wait_for_stage(service: Service, run_id: str, wanted: Stage) -> Stage:
    """Return once the run is at a stage, or past it."""
    order = list(get_args(Stage))

    def reached() -> Stage | None:
        now = _stage(service, run_id)
        ready = order.index(now) >= order.index(wanted)
        if wanted == "training" and now == "training":
            ready = bool(trainers(service, run_id))
        return now if ready else None

    return _wait(reached, _LONG_SECONDS, f"stage {wanted!r} of run {run_id}")


def _kill(service: Service, run_id: str, kind: Kind, rng: random.Random) -> list[str]:
    """Kill with SIGKILL, a worker at times with SIGTERM; return what was killed."""
    by = rng.choice((signal.SIGKILL, signal.SIGTERM)) if kind == "worker" else signal.SIGKILL
    flows = _flow_processes(run_id)
    parts = {part.name: part.process for part in service.stack.status() if part.running}
    victims: dict[str, int] = {}
    if kind == "trainer":
        victims = {f"rank {n}": pid for n, pid in enumerate(trainers(service, run_id))}
    if kind in ("flow", "machine"):
        victims |= {f"flow {n}": process.pid for n, process in enumerate(flows)}
    if kind in ("worker", "machine"):
        names = [name for name in parts if name.startswith("worker") and "gpu" in name]
        victims |= {name: parts[name].pid for name in names}
    if kind in ("server", "database"):
        name = "prefect" if kind == "server" else "postgres"
        victims[name] = parts[name].pid
    for pid in victims.values():
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).send_signal(by)
    return [f"{name} by {by.name}" for name in victims]


def _wait_for_end(
    service: Service, run_id: str, claim: Claim, at: float, back: float, patience: float, row: Row
) -> bool:
    """Keep the stack up until the run has ended; return whether a person had to ask."""
    asked = False
    while True:
        time.sleep(_POLL_SECONDS * 2)
        now = time.time()
        if now > back and not all(part.running for part in service.stack.status()):
            try:
                service.stack.up()
            except SlmError as error:
                print(f"      {error}", file=sys.stderr)
            continue
        with contextlib.suppress(httpx.HTTPError, SlmError):
            state = service.get(f"/flow_runs/{run_id}")["state"]["type"]
            with service.store() as store:
                done = store.claims.get(claim.id).state is ClaimState.DONE
            if done and state == "COMPLETED":
                row.seconds = round(now - at, 1)
                return asked
            if now - at > patience and not asked:
                service.start("resume/run", run_id=run_id)
                asked = True
        if now - at > 2 * patience:
            row.problems.append("the run never came to its end")
            return asked


def _judge(service: Service, run_id: str, claim: Claim, at: float, asked: bool, row: Row) -> None:
    """Fill in who noticed and who went on, and what is wrong."""
    states = sorted(
        service.get(f"/flow_run_states/?flow_run_id={run_id}"), key=lambda one: one["timestamp"]
    )
    later = [one for one in states if datetime.fromisoformat(one["timestamp"]).timestamp() > at]
    row.attempts = 1 + sum(one["name"] == "AwaitingRetry" for one in states)
    bad = next((one for one in later if one["type"] in ("CRASHED", "FAILED")), None)
    if bad is not None:
        noticed_at = datetime.fromisoformat(bad["timestamp"]).timestamp()
        row.noticed_seconds = round(noticed_at - at, 1)
        row.noticed = _who_noticed(bad)
    with service.store() as store:
        now, runs = store.claims.get(claim.id), store.runs.list()
        mine = [run for run in runs if run.id == run_id]
        adapters = [one for one in store.adapters.list() if one.run_id == run_id]
        datasets = store.datasets.list()
        calls, waiting = store.calls.count(), store.calls.waiting()
        wrong = store.verify()
        claims = store.claims.list()
    if not row.noticed and mine and len(mine[0].attempts) > 1:
        second = mine[0].attempts[1].started_at.astimezone(UTC).timestamp()
        row.noticed, row.noticed_seconds = "the flow", round(second - at, 1)
    row.noticed = row.noticed or "nobody had to"
    row.finished = _who_went_on(service, run_id, asked) if row.attempts > 1 else "the run itself"
    checks = {
        f"the claim is {now.state.value}, held by {now.owner}": (now.state, now.owner)
        == (ClaimState.DONE, run_id),
        f"the claim was taken {now.attempts} times": now.attempts == 1,
        f"{len(mine)} training records of the run": len(mine) == 1,
        f"{len(adapters)} adapters of the run": len(adapters) == 1,
        f"{len(runs)} trainings, {len(datasets)} datasets of {len(claims)} claims": len(runs)
        == len(datasets)
        == len(claims),
        f"{calls} calls of {service.spooled}, {waiting} unclaimed": (calls, waiting)
        == (service.spooled, 0),
        f"{len(claims)} claims of {calls} calls": len(claims) * CALLS_PER_CLAIM == calls,
        f"the store disagrees with itself: {wrong}": not wrong,
    }
    row.problems += [what for what, right in checks.items() if not right]
    left = _eventually_nobody(lambda: [*trainers(service, run_id), *_flow_processes(run_id)])
    row.problems += [f"still alive: {one}" for one in left]


def _who_noticed(state: dict[str, Any]) -> str:
    said = str(state.get("message") or "")
    if said.startswith(("no heartbeat", "pending and no")):
        return "the automation for silent runs"
    if said.startswith("Its process is gone"):
        return "resume-overdue"
    return "the Prefect worker" if "exited with status" in said else "the flow itself"


def _who_went_on(service: Service, run_id: str, asked: bool) -> str:
    if asked:
        return "a person, by resume/run"
    found = service.ask("POST", "/flow_runs/filter", {"flows": {"name": {"any_": ["resume"]}}})
    mine = [run for run in found if run["parameters"].get("run_id") == run_id]
    return "the automation, by resume/run" if mine else "resume-overdue"


def trainers(service: Service, run_id: str) -> list[int]:
    """Return the ids of a run's training workers."""
    folder = str(service.home / "runs" / run_id)
    return [
        process.pid
        for process in _processes()
        if "slm_core.training.worker" in (words := process.info["cmdline"] or [])
        and any(word.startswith(folder) for word in words)
    ]


def _flow_processes(run_id: str) -> list[psutil.Process]:
    """Return the processes that run the flow, not those that it started."""
    found: list[psutil.Process] = []
    for process in _processes():
        with contextlib.suppress(psutil.Error):
            environ = process.environ()
            command = " ".join(process.info["cmdline"] or [])
            if environ.get("PREFECT__FLOW_RUN_ID") == run_id and "training.worker" not in command:
                found.append(process)
    return found


def _processes() -> Iterator[psutil.Process]:
    return (p for p in psutil.process_iter(["cmdline", "status"]) if p.info["status"] not in _DEAD)


def _eventually_nobody(look: Callable[[], list[Any]], seconds: float = 20.0) -> list[Any]:
    deadline = time.monotonic() + seconds
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return found


def _wait(look: Callable[[], T | None], seconds: float, what: str) -> T:
    deadline = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come within {seconds:.0f} s")
        time.sleep(_POLL_SECONDS)
    return found


def table(rows: list[Row]) -> str:
    """Return the rows as Markdown."""
    lines = [
        "| kill | of | while | noticed by | after | went on | done after | begun | claim trained |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        noticed = "" if row.noticed_seconds is None else f"{row.noticed_seconds:.0f} s"
        took = "never" if row.seconds is None else f"{row.seconds:.0f} s"
        good = "once" if not row.problems else "; ".join(row.problems)
        kind = "worker, SIGTERM" if any("SIGTERM" in one for one in row.killed) else row.kind
        lines.append(
            f"| {row.number} | {kind} | {row.stage} | {row.noticed} | {noticed} | "
            f"{row.finished} | {took} | {row.attempts} | {good} |"
        )
    good = sum(not row.problems for row in rows)
    by_itself = sum("person" not in row.finished for row in rows)
    lines += [
        "",
        f"{len(rows)} kills: {good} ended with the claim trained on once and nothing lost, "
        f"{by_itself} without a person.",
    ]
    return "\n".join(lines) + "\n"


def read_rows(file: Path) -> list[Row]:
    """Return the rows of earlier, broken-off series too."""
    lines = file.read_text().splitlines() if file.is_file() else []
    return [Row(**json.loads(line)) for line in lines]


def main() -> int:
    """Read the command line, kill, and judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--kinds", nargs="+", choices=get_args(Kind), default=get_args(Kind))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=12, help="of each training")
    parser.add_argument("--patience", type=float, default=900.0, help="seconds")
    parser.add_argument("--out", type=Path, default=Path("chaos.jsonl"))
    parser.add_argument("--table", type=Path, help="only write the table of --out there")
    said = parser.parse_args()
    if said.table is not None:
        said.table.write_text(table(read_rows(said.out)))
        return 0
    logging.getLogger("httpx").setLevel(logging.WARNING)
    folder = Path(tempfile.mkdtemp(prefix="slm-chaos-"))
    folder.chmod(0o755)  # PostgreSQL runs as another user when we are root
    with Service(folder) as service:
        for number in range(len(read_rows(said.out)) + 1, said.kills + 1):
            rng = random.Random(f"{said.seed}/{number}")
            kind = said.kinds[(number - 1) % len(said.kinds)]
            print(f"{number:3} {kind} ...", flush=True)
            service.plan(said.epochs)  # each time: a deploy would take it back
            row = strike(service, number, kind, rng, patience=said.patience)
            with said.out.open("a") as out:
                out.write(json.dumps(asdict(row)) + "\n")
            print(
                f"    {row.stage}: noticed by {row.noticed} ({row.noticed_seconds} s), went on: "
                f"{row.finished}, done after {row.seconds} s {row.problems}",
                flush=True,
            )
    alive = _marked(service)
    print("".join(f"left behind: {pid}\n" for pid in alive), end="", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    rows = read_rows(said.out)
    print(table(rows))
    return 1 if alive or any(row.problems for row in rows) else 0


def _marked(service: Service) -> list[int]:
    found: list[int] = []
    for process in _processes():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARKER) == str(service.stack.home):
                found.append(process.pid)
    return found


if __name__ == "__main__":
    sys.exit(main())
