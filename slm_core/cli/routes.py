"""``slm routes``: which adapter answers for whom, and the way back."""

from __future__ import annotations

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
from slm_core.records import Track

app = typer.Typer(no_args_is_help=True, help="Who answers for which agent.")


@app.command("list")
def list_routes(as_json: JsonFlag = False) -> None:
    """List every route. Where none is live, the teacher answers."""
    with opened_store(load_settings()) as store:
        found = store.routes.list()
    if as_json:
        show_json(found)
        return
    show_table(
        ("agent", "track", "stage", "adapter", "changed"),
        (
            (one.agent_name, one.track, one.stage, one.adapter_id, moment(one.updated_at))
            for one in found
        ),
        empty="No routes yet: the teacher answers everything.",
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
