"""A status as titled tables of plain words: what the page, the artifact and the terminal show."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from slm_core.records import Stage
from slm_core.report.words import duration
from slm_core.status.concerns import RECENT
from slm_core.status.snapshot import Night, RunNow, Status

_NIGHTS = 7
_UNKNOWN = "not known"
_STAGES = {
    Stage.LIVE: "answers",
    Stage.CANARY: "answers a part",
    Stage.SHADOW: "answers beside the teacher, unseen",
    Stage.CANDIDATE: "waits to be promoted",
}


class Section(NamedTuple):
    """One part of the screen."""

    title: str
    summary: str
    """The answer in a few words."""
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    short: str
    """The answer in one word or number."""


def sections(status: Status) -> tuple[Section, ...]:
    """Return every part, in the order in which people ask."""
    return (
        _live(status),
        _running(status),
        _retraining(status),
        _nights(status),
        _waiting(status),
        _gpus(status),
        _machine(status),
    )


def _live(status: Status) -> Section:
    routes = status.store.routes if status.store else ()
    live = sum(route.stage is Stage.LIVE for route in routes)
    summary = (
        _UNKNOWN
        if status.store is None
        else "adapters answer; the teacher takes every other call"
        if live
        else "the teacher answers every call"
    )
    rows = tuple(
        (
            f"{route.agent_name}/{route.track}",
            route.adapter_id,
            f"{route.stage}: {_STAGES.get(route.stage, route.stage)}",
            _moment(route.since),
            _UNKNOWN if route.share is None else f"{100 * route.share:.0f} %",
        )
        for route in sorted(routes, key=lambda r: (r.stage is not Stage.LIVE, r.agent_name))
    )
    columns = ("agent and track", "adapter", "stage", "since", "share")
    return Section("Live", summary, columns, rows, str(live) if status.store else "?")


def _running(status: Status) -> Section:
    rows: list[tuple[str, ...]] = []
    known = status.operations
    ours = {run.run_id: run for run in status.runs if run.at_work}
    for flow_run in known.running if known else ():
        run = ours.pop(flow_run.id, None)
        progress = flow_run.progress or (_progress(run) if run else "")
        where = run.host if run else flow_run.where
        since = _moment(flow_run.since) if flow_run.since else ""
        rows.append((flow_run.name, flow_run.flow, flow_run.state, progress, where, since))
    for run in ours.values():
        rows.append((run.run_id, run.flow, "at work", _progress(run), run.host, ""))
    at_work = len(rows)
    for run in status.runs:
        if not run.at_work and status.at - run.moved_at < RECENT:
            said = f"{run.state}, at rest" if run.state != "running" else "crashed"
            moved = _moment(run.moved_at)
            rows.append((run.run_id, run.flow, said, _progress(run), run.host, moved))
    stopped = len(rows) - at_work
    summary = "runs" if at_work else "nothing runs"
    summary += f"; {stopped} stopped before their end" if stopped else ""
    columns = ("run", "flow", "state", "progress", "host", "since")
    return Section("At work", summary, columns, tuple(rows), str(at_work))


def _progress(run: RunNow) -> str:
    if run.step is None or not run.total_steps:
        return ""
    said = f"step {run.step} of {run.total_steps} ({100 * run.step / run.total_steps:.0f} %)"
    if run.loss is not None:
        said += f", loss {run.loss:.3f}"
    if run.at_work and run.eta_seconds:
        said += f", {duration(run.eta_seconds)} left"
    return said


def _retraining(status: Status) -> Section:
    columns = ("claim", "calls", "state", "held by", "attempts", "made")
    if status.store is None:
        return Section("Next retraining", _UNKNOWN, columns, (), "?")
    waiting, missing = status.store.waiting, status.missing
    summary = (
        f"{waiting} of {status.threshold} usable calls wait; {missing} more start it"
        if missing
        else f"{waiting} usable calls wait, enough for the next ingest to start it"
    )
    rows = tuple(
        (
            claim.id,
            str(claim.size),
            claim.state.value,
            claim.owner or "nobody",
            str(claim.attempts),
            _moment(claim.created_at),
        )
        for claim in status.store.claims
    )
    return Section("Next retraining", summary, columns, rows, f"{missing} calls")


def _nights(status: Status) -> Section:
    columns = ("night", "outcome", "run", "what it said")
    known = status.operations
    if known is None:
        return Section("Nights", _UNKNOWN, columns, (), "?")
    nights = known.nights[:_NIGHTS]
    done = [night for night in nights if night.green is not None]
    if done:
        green = sum(night.green is True for night in done)
        summary = f"{green} of the last {len(done)} green"
    else:
        summary = "none yet" if known.nightly_since else "none yet, and none is scheduled"
    rows = tuple((_moment(night.at), _outcome(night), night.run, night.message) for night in nights)
    short = ("green" if done[0].green else "not green") if done else "none"
    return Section("Nights", summary, columns, rows, short)


def _outcome(night: Night) -> str:
    marks = {True: "✓", False: "✗", None: "…"}
    return f"{marks[night.green]} {night.outcome}"


def _waiting(status: Status) -> Section:
    columns = ("what", "flow", "since", "ends by itself")
    waiting = status.waiting
    if waiting is None:
        return Section("Waiting for a person", _UNKNOWN, columns, (), "?")
    rows = tuple(
        (one.name, one.flow, _moment(one.since), _moment(one.until) if one.until else "never")
        for one in waiting
    )
    summary = "promotions to decide on" if rows else "nothing"
    return Section("Waiting for a person", summary, columns, rows, str(len(rows)))


def _gpus(status: Status) -> Section:
    columns = ("GPU", "health", "what was seen")
    found = status.gpus
    if found is None:
        summary, rows, short = "never checked on this machine", (), "?"
    elif not found.gpus:
        summary, rows, short = f"none, checked {_moment(found.checked_at)}", (), "none"
    else:
        rows = tuple((gpu.name, gpu.health.value, gpu.message) for gpu in found.gpus)
        fit = sum(gpu.health in ("PASS", "WARN") for gpu in found.gpus)
        summary = f"{fit} of {len(rows)} fit, checked {_moment(found.checked_at)}"
        short = f"{fit} of {len(rows)}"
    if status.reboot_due:
        summary += f"; restart this machine first: {status.reboot_due}"
    return Section(f"GPUs of {status.host}", summary, columns, rows, short)


def _machine(status: Status) -> Section:
    disk, known = status.disk, status.operations
    calls = f"{status.store.calls:,} calls" if status.store else status.store_problem
    free = f"{disk.free_bytes / 2**30:.0f} of {disk.total_bytes / 2**30:.0f} GiB free"
    rows = [("store", status.store_name, calls), ("disk", disk.path, free)]
    for pool in known.pools if known else ():
        said = f"{pool.online} workers, {pool.late} runs late"
        rows.append(("pool", pool.name, said + (", paused" if pool.paused else "")))
    asked = f"asked {_moment(known.at)}" if known else "not asked yet: run status/now"
    rows.append(("Prefect", (known.dashboard if known else "") or "", asked))
    short = f"{disk.free_bytes / 2**30:.0f} GiB free"
    return Section("Store, disk and workers", free, ("what", "where", "how"), tuple(rows), short)


def _moment(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M} UTC"
