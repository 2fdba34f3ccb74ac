"""What needs a person, in words, each with its page of RUNBOOK.md. Pure.

A concern stands until what is behind it has gone. Nothing is a concern that goes on by itself:
a crashed run gets time to be resumed, a claim to be taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from itertools import takewhile
from typing import Literal, NamedTuple

from slm_core.records import ClaimState, Health, RunState
from slm_core.status.snapshot import Operations, RunNow, Status

RunbookPage = Literal[
    "training-failed",
    "run-stopped",
    "threshold-without-run",
    "claim-stuck",
    "night-not-green",
    "schedule-not-green",
    "promotion-waiting",
    "canary-stepped-back",
    "gpu-sick",
    "no-worker",
    "disk-full",
    "store-down",
    "status-silent",
]
"""The headings of RUNBOOK.md that an alarm may lead to."""

RESUMED_WITHIN = timedelta(minutes=15)
"""A crashed run is marked and resumed without a person in that time."""
STARTED_WITHIN = timedelta(minutes=30)
"""`ingest/spool` runs every 5 minutes and starts a run for each claim."""
NIGHT_WITHIN = timedelta(hours=26)
"""From one night to the next; the clock may change."""
NIGHT_LASTS = timedelta(days=2)
"""A night may wait for a training of many hours, and then train itself."""
RED_IN_A_ROW = 2
"""One red run of a schedule mends itself with the next one."""
SPOKEN_WITHIN = timedelta(hours=3)
"""The flow ``status`` runs every hour."""
RECENT = timedelta(days=3)
"""A run that nobody went on with for longer is history."""
LEAST_FREE_BYTES = 5 * 2**30
LEAST_FREE_SHARE = 0.03


class Concern(NamedTuple):
    """One thing that needs a person."""

    key: str
    """Stable as long as it is about the same thing."""
    why: str
    runbook: RunbookPage
    since: datetime | None = None
    """None where it is not known, or where nothing else tells of it."""


def concerns(status: Status) -> tuple[Concern, ...]:
    """Return what needs a person, the most pressing first."""
    parts: tuple[Callable[[Status], Iterator[Concern]], ...] = (
        _store,
        _disk,
        _gpus,
        _pools,
        _runs,
        _claims,
        _nights,
        _routines,
        _waiting,
        _silence,
    )
    return tuple(concern for part in parts for concern in part(status))


def _store(status: Status) -> Iterator[Concern]:
    if status.store is None:
        yield Concern("store", f"The store does not answer: {status.store_problem}", "store-down")


def _disk(status: Status) -> Iterator[Concern]:
    disk = status.disk
    if disk.free_bytes < max(LEAST_FREE_BYTES, LEAST_FREE_SHARE * disk.total_bytes):
        yield Concern(
            "disk",
            f"{disk.free_bytes / 2**30:.1f} of {disk.total_bytes / 2**30:.0f} GiB are free on the "
            f"disk of {disk.path}.",
            "disk-full",
        )


def _gpus(status: Status) -> Iterator[Concern]:
    if status.reboot_due:
        yield Concern("reboot", f"{status.host} must be restarted: {status.reboot_due}", "gpu-sick")
    if status.gpus is None:
        return
    checked = status.gpus.checked_at
    for gpu in status.gpus.gpus:
        if gpu.health in (Health.FAIL, Health.UNKNOWN):
            text = f"GPU {gpu.name} is not fit: {gpu.message or gpu.health}"
            yield Concern(f"gpu.{gpu.name}", text, "gpu-sick", checked)
    if status.gpus.machine and status.gpus.gpus:
        yield Concern(f"gpus.{status.host}", status.gpus.machine, "gpu-sick", checked)


def _pools(status: Status) -> Iterator[Concern]:
    for pool in status.operations.pools if status.operations else ():
        paused = [f"pool {pool.name}"] if pool.paused else []
        paused += [f"queue {pool.name}/{queue}" for queue in pool.paused_queues]
        if pool.late and paused:
            why = f"{pool.late} runs wait in pool {pool.name}; paused: {', '.join(paused)}."
        elif pool.late and not pool.online:
            why = f"{pool.late} runs wait in pool {pool.name} and no worker of it reports."
        else:
            continue
        yield Concern(f"pool.{pool.name}", why, "no-worker")


def _runs(status: Status) -> Iterator[Concern]:
    for run in status.runs:
        rests = status.at - run.moved_at
        if run.at_work or run.cancelled or rests > RECENT:
            continue
        if run.state is RunState.FAILED:
            why = f"{run.flow} run {run.run_id} failed: {run.why}"
            yield Concern(f"run.{run.run_id}", why, "training-failed", run.moved_at)
        elif run.host == status.host and rests > RESUMED_WITHIN:
            why = f"{run.flow} run {run.run_id} {_came_to_rest(run)} and nothing goes on with it."
            yield Concern(f"run.{run.run_id}", why, "run-stopped", run.moved_at)


def _came_to_rest(run: RunNow) -> str:
    if run.state is RunState.RUNNING:
        return "crashed"
    return f"was stopped ({run.why})" if run.why else "was stopped"


def _claims(status: Status) -> Iterator[Concern]:
    runs = {run.run_id: run for run in status.runs}
    for claim in status.store.claims if status.store else ():
        age = status.at - claim.created_at
        page: RunbookPage = "claim-stuck"
        if claim.state is ClaimState.NEW and age > STARTED_WITHIN:
            why = f"Claim {claim.id} of {claim.size} calls has no run: ingest/spool started none."
            page = "threshold-without-run"
        elif claim.state is ClaimState.RUNNING and (owner := runs.get(claim.owner or "")):
            if not _abandoned(owner, status):
                continue
            why = f"Claim {claim.id} is held by run {claim.owner}, which is not at work."
        elif claim.state is ClaimState.RUNNING and age > NIGHT_WITHIN:
            why = f"Claim {claim.id} is held by run {claim.owner}, of which nothing is known here."
        elif claim.state is ClaimState.SUBMITTED and age > NIGHT_WITHIN:
            if _trains(status):
                continue  # one training at a time: it waits its turn
            why = f"Claim {claim.id} has a run, which has not begun."
        elif claim.state is ClaimState.RELEASED and age > NIGHT_WITHIN:
            why = f"Claim {claim.id} was given back and no night has taken it."
        else:
            continue
        yield Concern(f"claim.{claim.id}", why, page)


def _trains(status: Status) -> bool:
    """Whether any training is at work, for which others wait."""
    known = status.operations
    elsewhere = known.running if known is not None else ()
    return any(run.at_work for run in status.runs) or any(
        run.flow in ("train", "retrain") and run.state == "Running" for run in elsewhere
    )


def _abandoned(owner: RunNow, status: Status) -> bool:
    """Whether the run that holds a claim rests, for longer than the runs that are warned of.

    Of a run that began on another machine nobody is warned, so its claim is told after a day.
    """
    rests = status.at - owner.moved_at
    return not owner.at_work and rests > (RECENT if owner.host == status.host else NIGHT_WITHIN)


def _nights(status: Status) -> Iterator[Concern]:
    known = status.operations
    if known is None:
        return
    unended = list(takewhile(lambda night: night.green is None, known.nights))
    last = next((night for night in known.nights if night.green is not None), None)
    if last is not None and not last.green:
        why = f"The last night ({last.at:%Y-%m-%d}) ended {last.outcome}: {last.message}"
        yield Concern("night", why, "night-not-green")
    elif unended:
        oldest = unended[-1]
        if known.at - oldest.at > NIGHT_LASTS:
            why = f"The night of {oldest.at:%Y-%m-%d} is still {oldest.outcome}."
            yield Concern("night", why, "night-not-green")
    elif (since := _silent_since(known)) and known.at - since > NIGHT_WITHIN:
        why = f"No nightly run since {since:%Y-%m-%d %H:%M} UTC, though one is scheduled."
        yield Concern("night", why, "night-not-green")


def _silent_since(known: Operations) -> datetime | None:
    """Return since when there was no night; None when none is expected."""
    if known.nightly_since is None:
        return None
    return max(known.nights[0].at, known.nightly_since) if known.nights else known.nightly_since


def _routines(status: Status) -> Iterator[Concern]:
    for one in status.operations.routines if status.operations else ():
        if one.red >= RED_IN_A_ROW:
            why = f"{one.deployment} ended {one.outcome}, {one.red} times in a row: {one.message}"
            yield Concern(f"routine.{one.deployment}", why, "schedule-not-green")


def _waiting(status: Status) -> Iterator[Concern]:
    for run in status.waiting or ():
        until = f" It ends by itself at {run.until:%Y-%m-%d %H:%M} UTC." if run.until else ""
        why = f"{run.flow} run {run.name} waits for a person.{until}"
        yield Concern(f"waiting.{run.id}", why, "promotion-waiting", run.since)


def _silence(status: Status) -> Iterator[Concern]:
    known = status.operations
    if known is not None and status.at - known.at > SPOKEN_WITHIN:
        why = f"The flow status/now last ran at {known.at:%Y-%m-%d %H:%M} UTC."
        yield Concern("silence", why, "status-silent")
