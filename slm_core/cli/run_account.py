"""What is known of a run, from its folder, the store and Prefect, whichever of them answer.

The folder alone is enough: an on-call engineer looks at runs when the database is down, too.
Nothing is changed or repaired by looking.
"""

from __future__ import annotations

import difflib
import json
import socket
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from slm_core.errors import ConfigError, RecordNotFound
from slm_core.records import Attempt, Claim, Record, RunState, TrainingRun
from slm_core.training.orders import Order, OrderBook

if TYPE_CHECKING:
    from slm_core.store import Store

State = Literal[
    "at work", "elsewhere", "crashed", "interrupted", "failed", "completed", "unfinished"
]
"""``crashed``: it says that it runs, and nobody is at work on it. ``elsewhere``: the same, but it
was last taken up on another machine, which cannot be seen from here. ``unfinished``: an
evaluation without a report; whether it still runs only Prefect knows."""


class PartAccount(Record):
    """One training of a run."""

    run_id: str
    folder: str
    attempts: tuple[Attempt, ...] = ()
    step: int = 0
    total_steps: int | None = None
    eta_seconds: float | None = None
    beat_seconds_ago: float | None = None
    """Since the worker's last sign of life; None when no worker was ever started."""
    adapter_id: str | None = None
    state: str | None = None
    """As the store has it."""


class RunAccount(Record):
    """One run, over all that tells of it."""

    run_id: str
    flow: Literal["train", "retrain", "eval"]
    state: State
    stage: str
    created_at: datetime
    host: str = ""
    why: str = ""
    folder: str | None = None
    """None where the run is known from the store only."""
    dataset_id: str | None = None
    claim_id: str | None = None
    flow_run_id: str | None = None
    reason: str = ""
    parts: tuple[PartAccount, ...] = ()
    evaluation: str | None = None
    """Its file, once there is one."""
    report: str | None = None
    outcome: str | None = None
    claim: Claim | None = None

    @property
    def step(self) -> int:
        """Steps done, over all parts."""
        return sum(part.step for part in self.parts)

    @property
    def total_steps(self) -> int | None:
        """Steps in all; None while some part has not said."""
        totals = [part.total_steps for part in self.parts]
        return sum(t for t in totals if t is not None) if totals and None not in totals else None

    @property
    def faults(self) -> tuple[str, ...]:
        """What ended attempts, in order."""
        attempts = [attempt for part in self.parts for attempt in part.attempts]
        return tuple(attempt.fault.kind for attempt in attempts if attempt.fault)


def find_accounts(runs: Path, store: Store | None) -> list[RunAccount]:
    """Return every run, oldest first.

    Args:
        runs: the folder of all runs; need not exist.
        store: None when it does not answer.
    """
    book = OrderBook(runs)
    orders = book.list()
    stored = {run.id: run for run in store.runs.list()} if store else {}
    claims = {claim.id: claim for claim in store.claims.list()} if store else {}
    told = {part.run_id for order in orders for part in order.parts}
    told |= {order.run_id for order in orders}
    found = [_of_order(order, book, runs, stored, claims) for order in orders]
    found += [_of_evaluation(folder) for folder in _evaluations(runs) if folder.name not in told]
    told |= {account.run_id for account in found}
    found += [_of_record(run) for run in stored.values() if run.id not in told]
    return sorted(found, key=lambda one: (one.created_at, one.run_id))


def choose(accounts: Iterable[RunAccount], wanted: str) -> RunAccount:
    """Return the run of that id, or of the one id that begins so, or that holds it.

    Raises:
        RecordNotFound: there is none; close matches are named.
        ConfigError: there are several.
    """
    known = {part.run_id: one for one in accounts for part in one.parts}
    known |= {one.run_id: one for one in accounts}
    if wanted in known:
        return known[wanted]
    for fits in (str.startswith, str.__contains__):
        ids = [run_id for run_id in known if fits(run_id, wanted)]
        runs = {known[run_id].run_id: known[run_id] for run_id in ids}
        if len(runs) == 1:
            return next(iter(runs.values()))
        if runs:
            raise ConfigError(f"{len(runs)} runs go by {wanted!r}.", problems=tuple(runs))
    close = difflib.get_close_matches(wanted, known, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(close)}?" if close else " `slm runs list` names the runs."
    raise RecordNotFound(f"There is no run {wanted!r}.{hint}")


def _of_order(
    order: Order,
    book: OrderBook,
    runs: Path,
    stored: dict[str, TrainingRun],
    claims: dict[str, Claim],
) -> RunAccount:
    folder = runs / order.run_id
    parts = tuple(_part(part.run_id, runs, stored.get(part.run_id)) for part in order.parts)
    report, outcome = _report(folder)
    return RunAccount(
        run_id=order.run_id,
        flow=order.flow,
        state=_state(order, at_work=book.at_work(order.run_id)),
        stage=_stage(order, parts, folder),
        created_at=order.created_at,
        host=order.host,
        why=order.why,
        folder=str(folder),
        dataset_id=order.dataset_id,
        claim_id=order.claim_id,
        claim=claims.get(order.claim_id or ""),
        flow_run_id=order.flow_run_id,
        reason=order.reason,
        parts=parts,
        evaluation=_if_there(folder / "evaluation" / "evaluation.json"),
        report=report,
        outcome=outcome,
    )


def _state(order: Order, *, at_work: bool) -> State:
    if at_work:
        return "at work"
    match order.state:
        case RunState.COMPLETED:
            return "completed"
        case RunState.FAILED:
            return "failed"
        case RunState.INTERRUPTED:
            return "interrupted"
        case RunState.RUNNING:
            return "crashed" if order.host == socket.gethostname() else "elsewhere"


def _stage(order: Order, parts: tuple[PartAccount, ...], folder: Path) -> str:
    """Return the stage that the run has come to."""
    if order.state is RunState.COMPLETED:
        return "done"
    if not parts:
        return "before training"
    if any(not (Path(part.folder) / "adapter").is_dir() for part in parts):
        return "training"
    if order.flow == "train":
        return "trained"
    return "report" if (folder / "report" / "report.json").is_file() else "evaluation"


def _part(run_id: str, runs: Path, record: TrainingRun | None) -> PartAccount:
    from slm_core.training.run_folder import RunFolder

    folder = runs / run_id / "training"
    run = RunFolder(folder)
    attempts = tuple(run.read_attempts()) or (record.attempts if record else ())
    step, total, eta = _progress(run.events)
    return PartAccount(
        run_id=run_id,
        folder=str(folder),
        attempts=attempts,
        step=max([step, *(attempt.last_step for attempt in attempts[-1:])]),
        total_steps=total,
        eta_seconds=eta,
        beat_seconds_ago=_age(folder.glob("heartbeat-*")),
        adapter_id=record.adapter_id if record else None,
        state=record.state if record else None,
    )


def _progress(events: Path) -> tuple[int, int | None, float | None]:
    """Return step, steps in all and seconds left, by the last whole line of the events."""
    from slm_core.training.events import read_last

    event = read_last(events)
    return (event.step, event.total_steps, event.eta_seconds) if event else (0, None, None)


def _evaluations(runs: Path) -> list[Path]:
    """Return the folders of evaluations that no order tells of."""
    found = (path for path in runs.glob("*/evaluation") if path.is_dir())
    return [path.parent for path in found if not (path.parent / "order.json").exists()]


def _of_evaluation(folder: Path) -> RunAccount:
    files = [path for path in folder.rglob("*") if path.is_file()]
    began = min((path.stat().st_mtime for path in files), default=folder.stat().st_mtime)
    report, outcome = _report(folder)
    return RunAccount(
        run_id=folder.name,
        flow="eval",
        state="completed" if report else "unfinished",
        stage="done" if report else "evaluation",
        created_at=datetime.fromtimestamp(began, UTC),
        folder=str(folder),
        flow_run_id=folder.name,
        evaluation=_if_there(folder / "evaluation" / "evaluation.json"),
        report=report,
        outcome=outcome,
    )


def _of_record(run: TrainingRun) -> RunAccount:
    """Return a run of which only the store tells: its folder is on another machine, or gone."""
    states: dict[RunState, State] = {
        RunState.RUNNING: "elsewhere",
        RunState.COMPLETED: "completed",
        RunState.FAILED: "failed",
        RunState.INTERRUPTED: "interrupted",
    }
    last = run.attempts[-1] if run.attempts else None
    return RunAccount(
        run_id=run.id,
        flow="train",
        state=states[run.state],
        stage="done" if run.state is RunState.COMPLETED else "training",
        created_at=run.created_at,
        why=last.fault.message if last and last.fault else "",
        dataset_id=run.dataset_id,
        parts=(
            PartAccount(
                run_id=run.id,
                folder=run.path,
                attempts=run.attempts,
                step=last.last_step if last else 0,
                adapter_id=run.adapter_id,
                state=run.state,
            ),
        ),
    )


def _report(folder: Path) -> tuple[str | None, str | None]:
    """Return the page of the report, and the outcome that it tells."""
    file = folder / "report" / "report.json"
    if not file.is_file():
        return None, None
    try:
        told: dict[str, Any] = json.loads(file.read_bytes())
    except ValueError:
        return str(file), None
    page = file.with_suffix(".html")
    return str(page if page.is_file() else file), told.get("outcome")


def _if_there(path: Path) -> str | None:
    return str(path) if path.is_file() else None


def _age(files: Iterable[Path]) -> float | None:
    """Return the seconds since the newest of ``files`` was written."""
    times = [path.stat().st_mtime for path in files]
    return max(0.0, datetime.now(UTC).timestamp() - max(times)) if times else None
