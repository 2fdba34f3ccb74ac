"""``slm evaluations``: what the arms scored."""

from __future__ import annotations

import typer

from slm_core.cli.opening import load_settings, opened_store
from slm_core.cli.terminal import JsonFlag, moment, show_facts, show_json, show_table

app = typer.Typer(no_args_is_help=True, help="Evaluations.")


@app.command("list")
def list_evaluations(as_json: JsonFlag = False) -> None:
    """List every evaluation, oldest first, with the decision on it."""
    with opened_store(load_settings()) as store:
        found = store.evaluations.list()
        outcomes = {one.evaluation_id: one.outcome for one in store.decisions.list()}
    if as_json:
        show_json(found)
        return
    show_table(
        ("evaluation", "made", "adapter", "test set", "decision"),
        (
            (
                one.id,
                moment(one.created_at),
                one.adapter_id or "",
                one.test_set_id,
                outcomes.get(one.id, ""),
            )
            for one in found
        ),
        empty="No evaluations yet.",
    )


@app.command()
def show(evaluation_id: str, as_json: JsonFlag = False) -> None:
    """Show the scores of every arm, strict view, with 95 % intervals."""
    from slm_core.report import arms_table

    with opened_store(load_settings()) as store:
        found = store.evaluations.get(evaluation_id)
    if as_json:
        show_json(found)
        return
    show_facts(
        {
            "evaluation": found.id,
            "made": moment(found.created_at),
            "adapter": found.adapter_id or "none",
            "test set": found.test_set_id,
            "answers": found.details_path,
        }
    )
    table = arms_table(found)
    show_table(table.columns, table.rows, empty="No arm was scored.")
