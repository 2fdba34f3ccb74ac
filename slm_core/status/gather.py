"""Look at the store, the runs' folders, the GPUs' last check and the disk."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import ValidationError

from slm_core.errors import RecordNotFound, StoreError
from slm_core.health.host import HostPaths
from slm_core.health.ledger import Ledger
from slm_core.records import ClaimState, Health, HealthReport, RunState, Stage
from slm_core.records.health import worst
from slm_core.status.snapshot import (
    Disk,
    GpuNow,
    GpusNow,
    Operations,
    RouteNow,
    RunNow,
    Status,
    Stored,
    Waiting,
)
from slm_core.training.events import StepEvent, read_last
from slm_core.training.orders import Order, OrderBook
from slm_core.training.run_folder import RunFolder

if TYPE_CHECKING:
    from slm_core.store import Store

_UNFINISHED = (RunState.RUNNING, RunState.INTERRUPTED, RunState.FAILED)


class Look(NamedTuple):
    """Where to look."""

    home: Path
    """``SLM_HOME``."""
    open_store: Callable[[], AbstractContextManager[Store]]
    threshold: int
    gpu_report: Path
    gpu_ledger: Path


def gather(look: Look, operations: Operations | None = None) -> Status:
    """Return how everything stands now. A store that does not answer is part of the answer."""
    stored, problem = None, ""
    try:
        with look.open_store() as store:
            stored, name = _stored(store), store.url
    except (StoreError, RecordNotFound) as error:
        problem, name = error.message, str(error.context.get("store", ""))
    boot_id = HostPaths().boot_id()
    asked = Ledger(look.gpu_ledger).pending_reboot(boot_id) if boot_id else None
    usage = shutil.disk_usage(_existing(look.home))
    return Status(
        host=socket.gethostname(),
        threshold=look.threshold,
        store=stored,
        store_name=name,
        store_problem=problem,
        runs=tuple(_runs(look.home / "runs")),
        gpus=_gpus(look.gpu_report),
        reboot_due=asked.reason if asked else "",
        disk=Disk(path=str(look.home), free_bytes=usage.free, total_bytes=usage.total),
        operations=operations,
    )


def _stored(store: Store) -> Stored:
    states = [state for state in ClaimState if state is not ClaimState.DONE]
    claims = (claim for state in states for claim in store.claims.list(state))
    return Stored(
        calls=store.calls.count(),
        waiting=store.calls.waiting(),
        routes=tuple(
            RouteNow(
                agent_name=route.agent_name,
                track=route.track,
                adapter_id=route.adapter_id,
                stage=route.stage,
                since=route.updated_at,
                share=1.0 if route.stage is Stage.LIVE else route.share,
            )
            for route in store.routes.list()
            if route.stage is not Stage.RETIRED
        ),
        claims=tuple(sorted(claims, key=lambda claim: claim.created_at)),
        waiting_promotions=tuple(
            Waiting(
                id=one.run_id,
                name=f"{one.adapter_id} for "
                + ", ".join(f"{move.agent_name}/{move.track}" for move in one.moves),
                flow="promote",
                since=one.created_at,
                until=one.expires_at,
            )
            for one in store.approvals.waiting()
        ),
    )


def _runs(folder: Path) -> Iterator[RunNow]:
    """Yield what is at work or came to rest unfinished, oldest first."""
    book = OrderBook(folder)
    for order in book.list():
        if order.state in _UNFINISHED:
            yield _run(folder, order, at_work=book.at_work(order.run_id))


def _run(folder: Path, order: Order, *, at_work: bool) -> RunNow:
    moved = datetime.fromtimestamp((folder / order.run_id / "order.json").stat().st_mtime, UTC)
    step: StepEvent | None = None
    for run_id in {order.run_id, *(part.run_id for part in order.parts)}:
        events = RunFolder(folder / run_id / "training").events
        event = read_last(events)
        if event is None:
            continue
        stepped = datetime.fromtimestamp(events.stat().st_mtime, UTC)
        if step is None or stepped > moved:
            step, moved = event, max(moved, stepped)
    return RunNow(
        run_id=order.run_id,
        flow=order.flow,
        state=order.state,
        at_work=at_work,
        host=order.host,
        moved_at=moved,
        why=order.why,
        cancelled=order.cancelled,
        claim_id=order.claim_id,
        step=step.step if step else None,
        total_steps=step.total_steps if step else None,
        loss=step.loss if step else None,
        eta_seconds=step.eta_seconds if step else None,
    )


def _gpus(path: Path) -> GpusNow | None:
    """Return what the last health check found; None when there was none that can be read."""
    try:
        report = HealthReport.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    cards: dict[tuple[str, ...], str] = {
        (gpu.uuid, gpu.pci_bus_id): f"{gpu.index}: {gpu.name}" if gpu.name else gpu.uuid
        for gpu in report.gpus
    }
    listed = {name for names in cards for name in names}
    # A card that is lost is one that the driver does not list any more.
    cards |= {(one.gpu,): one.gpu for one in report.checks if one.gpu and one.gpu not in listed}
    found: list[GpuNow] = []
    for names, name in cards.items():
        checks = [one for one in report.checks if one.gpu in names]
        health = worst(one.health for one in checks)
        bad = [one.message for one in checks if one.health is health is not Health.PASS]
        found.append(GpuNow(name=name, health=health, message=" ".join(bad)))
    machine = [
        one.message
        for one in report.checks
        if one.gpu is None and one.health in (Health.FAIL, Health.UNKNOWN)
    ]
    return GpusNow(
        checked_at=report.created_at,
        health=report.health,
        gpus=tuple(found),
        machine=" ".join(machine),
    )


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())
