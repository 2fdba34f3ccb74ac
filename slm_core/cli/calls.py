"""``slm calls``: what was captured, at what cost, and what became of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slm_core.cli.opening import load_settings, opened_store
from slm_core.cli.terminal import JsonFlag, moment, progress, show_facts, show_json, show_table
from slm_core.errors import ConfigError, RecordNotFound
from slm_core.records import CallStats

app = typer.Typer(no_args_is_help=True, help="Captured calls.")


@app.command()
def stats(
    agent: Annotated[str | None, typer.Option(help="Of this agent only.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show success rate, cost, time and tokens per agent and model."""
    with opened_store(load_settings()) as store:
        found = store.calls.stats(agent)
        if agent is not None and not found:
            known = sorted({one.agent_name for one in store.calls.stats()})
            raise RecordNotFound(
                f"No call of agent {agent!r} is stored. Agents with calls: "
                f"{', '.join(known) or 'none'}."
            )
    if as_json:
        show_json([{**one.model_dump(), "success_rate": one.success_rate} for one in found])
        return
    show_table(
        ("agent", "type", "model", "calls", "success", "cost", "p50", "p95", "tokens in", "out"),
        map(_stats_row, found),
        empty="No calls yet: capture some, then `slm calls drain`.",
    )


@app.command()
def drain(as_json: JsonFlag = False) -> None:
    """Move the calls in the spool folder into the store.

    Says what was stored, which calls may not become training examples, and why.
    """
    from slm_core.capture import drain_spool
    from slm_core.dataset import why_unusable

    settings = load_settings()
    with opened_store(settings, create=True) as store:
        with progress("Draining") as on_progress:
            report = drain_spool(
                settings.spool_dir, store, usable=why_unusable, on_progress=on_progress
            )
        in_quarantine = store.quarantine.counts()
    if as_json:
        show_json({**report.model_dump(), "in_quarantine": in_quarantine})
        return
    show_facts(
        {
            "read": str(report.read),
            "stored": str(report.stored),
            "duplicates": str(report.duplicates),
            "quarantined": str(report.quarantined),
            "torn": str(report.torn),
            "usable": str(report.usable),
            **{f"  not: {reason}": str(n) for reason, n in report.unusable.items()},
            "waiting for a retraining": str(report.waiting),
            "in quarantine, all told": str(sum(in_quarantine.values())),
        }
    )


@app.command()
def quarantine(
    limit: Annotated[int, typer.Option(min=1, help="Show at most so many, oldest first.")] = 50,
    as_json: JsonFlag = False,
) -> None:
    """List the rows that could not be read as calls, with the reasons."""
    with opened_store(load_settings()) as store:
        rows = store.quarantine.list(limit)
        in_all = sum(store.quarantine.counts().values())
    if as_json:
        show_json(rows)
        return
    show_table(
        ("found in", "when", "reason"),
        ((row.source, moment(row.created_at), row.reason) for row in rows),
        empty="The quarantine is empty.",
    )
    if in_all > len(rows):
        typer.echo(f"{len(rows)} of {in_all}; --limit shows more.")


@app.command()
def export(
    out: Annotated[Path, typer.Argument(help="Folder to write to.")],
    agent: Annotated[str | None, typer.Option(help="Calls of this agent only.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Drain the spool, then write each usable call as a line of Hermes function-calling JSON."""
    from slm_core.capture import WorkflowTracer
    from slm_core.dataset import why_unusable

    settings = load_settings()
    with WorkflowTracer(spool_dir=settings.spool_dir, database_url=settings.database_url) as tracer:
        try:
            file = tracer.generate_training_dataset(out, agent_name=agent, usable=why_unusable)
        except OSError as error:
            raise ConfigError(f"{out} cannot be written: {error}") from error
    if as_json:
        show_json(file._asdict())
        return
    left_out = {f"left out: {reason}": str(n) for reason, n in file.left_out.items()}
    show_facts({"file": str(file.path), "rows": f"{file.rows} of {file.calls} calls", **left_out})


def _stats_row(one: CallStats) -> tuple[str, ...]:
    from slm_core.report.words import percent, seconds, usd

    cost = usd(None if one.cost_nanousd is None else one.cost_nanousd / 1e9)
    return (
        one.agent_name,
        one.agent_type,
        one.model,
        f"{one.calls:,}",
        percent(one.success_rate),
        f"{cost} ({one.unpriced:,} unpriced)" if one.unpriced else cost,
        seconds(one.seconds_p50),
        seconds(one.seconds_p95),
        f"{one.prompt_tokens:,}",
        f"{one.completion_tokens:,}",
    )
