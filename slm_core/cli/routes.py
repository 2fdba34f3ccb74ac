"""``slm routes``: which adapter answers for whom, and the way back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from slm_core.cli.opening import load_settings, opened_store
from slm_core.cli.terminal import (
    JsonFlag,
    Reason,
    current_user,
    moment,
    show_json,
    show_table,
)
from slm_core.errors import RecordNotFound
from slm_core.records import GateResult, Route, Stage, Track, TrafficLimits

if TYPE_CHECKING:
    from slm_core.store import Store

app = typer.Typer(no_args_is_help=True, help="Who answers for which agent.")


@app.command("list")
def list_routes(as_json: JsonFlag = False) -> None:
    """List every route with its share of the traffic and what became of it.

    Where none is live, the teacher answers. Rates are of the route's present stage, with
    their 95 % interval.
    """
    with opened_store(load_settings()) as store:
        found = [(one, _traffic(store, one)) for one in store.routes.list()]
    if as_json:
        show_json(
            [{**one.model_dump(), "traffic": {g.gate: g for g in gates}} for one, gates in found]
        )
        return
    show_table(
        ("agent", "track", "stage", "share", "adapter", "changed", "fell back", "disagreed"),
        (
            (
                one.agent_name,
                one.track,
                one.stage,
                _share(one),
                one.adapter_id,
                moment(one.updated_at),
                *(gate.reason if gate.n else "" for gate in gates),
            )
            for one, gates in found
        ),
        empty="No routes yet: the teacher answers everything.",
    )


def _share(route: Route) -> str:
    if route.stage is Stage.LIVE:
        return "100 %"
    return f"{route.share:.0%}" if route.share is not None else ""


def _traffic(store: Store, route: Route) -> tuple[GateResult, GateResult]:
    from slm_core.serving.evidence import disagreement_gate, fall_back_gate, limits_of

    counts = store.traffic.totals(route, version=route.version)
    limits = limits_of(store, route) or TrafficLimits()
    role = "shadow" if route.stage is Stage.SHADOW else "answer"
    return (
        fall_back_gate(route, counts, role, limits, limits.min_answers),
        disagreement_gate(route, counts, limits, limits.min_answers),
    )


@app.command()
def approvals(as_json: JsonFlag = False) -> None:
    """List what was asked of people: waiting, approved, rejected or expired; by whom and why."""
    with opened_store(load_settings()) as store:
        found = store.approvals.list()
    if as_json:
        show_json(found)
        return
    show_table(
        ("asked", "adapter", "moves", "state", "who", "reason"),
        (
            (
                moment(one.created_at),
                one.adapter_id,
                ", ".join(f"{m.agent_name}/{m.track} → {m.to_stage}" for m in one.moves),
                one.state,
                one.who or f"until {moment(one.expires_at)}",
                one.refused or one.reason or "",
            )
            for one in found
        ),
        empty="Nobody was asked yet.",
    )


@app.command()
def history(agent: str, track: Track, as_json: JsonFlag = False) -> None:
    """List every move of the routes of an agent and track, oldest first."""
    with opened_store(load_settings()) as store:
        found = store.routes.history(agent, track)
        if not found:
            known = sorted({f"{one.agent_name}/{one.track}" for one in store.routes.list()})
            raise RecordNotFound(
                f"{agent}/{track} never had a route. Those that had: {', '.join(known) or 'none'}."
            )
    if as_json:
        show_json(found)
        return
    show_table(
        ("when", "adapter", "move", "who", "reason"),
        (
            (
                moment(one.created_at),
                one.adapter_id,
                f"{one.from_stage or 'new'} → {one.to_stage}",
                one.who,
                one.reason,
            )
            for one in found
        ),
        empty="",
    )


@app.command()
def roll_back(agent: str, track: Track, reason: Reason, as_json: JsonFlag = False) -> None:
    """Bring back the adapter that was live before the present one."""
    from slm_core.serving import roll_back as roll_back_route

    with opened_store(load_settings()) as store:
        route = roll_back_route(
            store, agent_name=agent, track=track, who=current_user(), reason=reason
        )
    if as_json:
        show_json(route)
    else:
        typer.echo(f"{agent}/{track}: {route.adapter_id} is live again.")
