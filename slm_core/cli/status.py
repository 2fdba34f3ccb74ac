"""``slm status``: the whole service on one screen."""

from __future__ import annotations

import typer

from slm_core.cli.opening import load_settings, opened_store
from slm_core.cli.terminal import JsonFlag, show_json, show_table


def status(as_json: JsonFlag = False) -> None:
    """Show what is live, what runs, and what needs a person. Status 0: all is well; 1: it is not.

    What only the Prefect server knows is as the flow status/now last saw it.
    """
    settings = load_settings()
    from slm_core.status import Look, StatusFiles, concerns, gather, headline, sections

    look = Look(
        home=settings.home,
        open_store=lambda: opened_store(settings),
        threshold=settings.retrain_threshold,
        gpu_report=settings.gpu_report,
        gpu_ledger=settings.gpu_ledger,
    )
    now = gather(look, StatusFiles(settings.home).operations())
    found = concerns(now)
    if as_json:
        show_json({"status": now, "concerns": [one._asdict() for one in found]})
    else:
        colour = typer.colors.RED if found else typer.colors.GREEN
        typer.secho(f"{headline(found)}.", fg=colour, bold=True)
        for one in found:
            typer.echo(f"  {one.why} RUNBOOK.md: {one.runbook}.")
        for part in sections(now):
            typer.secho(f"\n{part.title}: {part.summary}.", bold=True)
            if part.rows:
                show_table(part.columns, part.rows, empty="")
    if found:
        raise typer.Exit(1)
