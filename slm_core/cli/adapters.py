"""``slm adapters``: what was trained, and who it answers for."""

from __future__ import annotations

from typing import Annotated

import typer

from slm_core.cli.adapter_files import merge, push
from slm_core.cli.opening import load_settings, opened_store
from slm_core.cli.terminal import (
    JsonFlag,
    Reason,
    current_user,
    moment,
    show_facts,
    show_json,
    show_table,
    warn,
)
from slm_core.records import Adapter, Stage, Track, TrafficLimits
from slm_core.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Trained adapters.")


@app.command("list")
def list_adapters(as_json: JsonFlag = False) -> None:
    """List every adapter, oldest first, with the last decision on it."""
    with opened_store(load_settings()) as store:
        found = store.adapters.list()
        outcomes = {one.adapter_id: one.outcome for one in store.decisions.list()}
    if as_json:
        show_json([one.model_dump(mode="json", exclude={"losses"}) for one in found])
        return
    show_table(
        ("adapter", "made", "base model", "tracks", "dataset", "decision"),
        (
            (
                one.id,
                moment(one.created_at),
                one.base_model,
                ", ".join(one.tracks),
                one.dataset_id,
                outcomes.get(one.id, ""),
            )
            for one in found
        ),
        empty="No adapters yet.",
    )


@app.command()
def show(adapter_id: str, as_json: JsonFlag = False) -> None:
    """Show one adapter: what made it, the decisions on it, and where it answers."""
    with opened_store(load_settings()) as store:
        found = store.adapters.get(adapter_id)
        decisions = store.decisions.of_adapter(adapter_id)
        routes = [route for route in store.routes.list() if route.adapter_id == adapter_id]
    if as_json:
        show_json({"adapter": found, "decisions": decisions, "routes": routes})
        return
    show_facts(
        {
            "adapter": found.id,
            "made": moment(found.created_at),
            "path": found.path,
            "base model": found.base_model,
            "tracks": ", ".join(found.tracks),
            "context prefix": found.cep_id or "none",
            "dataset": found.dataset_id,
            "run": found.run_id,
            "code": found.code_version,
            **{key.replace("_", " "): str(value) for key, value in found.summary.items()},
            **{f"decision {one.id}": one.outcome for one in decisions},
            **{f"route {one.agent_name}/{one.track}": one.stage for one in routes},
        }
    )


@app.command()
def promote(
    adapter_id: str,
    agent: Annotated[str, typer.Option(help="Whose calls it shall answer.")],
    track: Annotated[Track, typer.Option(help="Which of them.")],
    reason: Reason,
    to: Annotated[Stage, typer.Option(help="Where to; retired takes it off.")] = Stage.LIVE,
    override: Annotated[
        str | None, typer.Option(help="Why to go on although the decision is not SUCCESS.")
    ] = None,
    share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Part of the conversations, for a canary.")
    ] = 0.10,
    as_json: JsonFlag = False,
) -> None:
    """Let an adapter answer for an agent.

    Typing it is the approval: after a decision of SUCCESS an adapter goes live at once.
    Any other needs --override, and goes by way of shadow and canary. So does one that is on
    this way already, and its traffic must bear the next step out: by the limits that a canary was
    given, or those of the retraining's plan.
    """
    from slm_core.serving import evidence_for, limits_of, require_evidence
    from slm_core.serving import promote as promote_adapter

    settings = load_settings()
    with opened_store(settings) as store:
        adapter = store.adapters.get(adapter_id)
        decisions = store.decisions.of_adapter(adapter_id)
        now = store.routes.find(agent, track, adapter_id)
        limits = limits_of(store, now) if now is not None and now.stage is Stage.CANARY else None
        limits = limits or _planned_limits(settings, adapter)
        steps = {Stage.SHADOW, Stage.CANARY} - {to}
        if now is not None and now.stage in steps and override is None:
            require_evidence(now, to, evidence_for(store, now, to, limits))
        route = promote_adapter(
            store,
            adapter=adapter,
            agent_name=agent,
            track=track,
            decision=decisions[-1] if decisions else None,
            who=current_user(),
            reason=reason,
            to_stage=to,
            auto_approve=True,
            override_reason=override,
            share=share if to is Stage.CANARY else None,
            limits=limits,
        )
        if not store.calls.stats(agent):
            warn(f"No call of agent {agent!r} was ever captured; is the name right?")
    if as_json:
        show_json(route)
    else:
        typer.echo(f"{agent}/{track}: {adapter_id} is {route.stage}.")


def _planned_limits(settings: Settings, adapter: Adapter) -> TrafficLimits:
    """Return the limits of the plan that the adapter's retraining had; else the default ones."""
    from slm_core.presets import RETRAIN_PRESETS, RetrainSpec
    from slm_core.training.orders import OrderBook

    order = OrderBook(settings.home / "runs").find(adapter.run_id)
    if order is None or order.flow != "retrain":
        return RETRAIN_PRESETS["nano"].promotion.limits
    return RetrainSpec.model_validate(order.spec).promotion.limits


app.command()(merge)
app.command()(push)
