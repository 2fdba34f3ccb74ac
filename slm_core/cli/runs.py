"""``slm runs``: the training runs and how they fared."""

from __future__ import annotations

import typer

from slm_core.cli.opening import load_settings, opened_store
from slm_core.cli.terminal import JsonFlag, moment, show_json, show_table
from slm_core.records import TrainingRun

app = typer.Typer(no_args_is_help=True, help="Training runs.")


@app.command("list")
def list_runs(as_json: JsonFlag = False) -> None:
    """List every training run, oldest first, with its attempts and faults."""
    with opened_store(load_settings()) as store:
        found = store.runs.list()
    if as_json:
        show_json(found)
        return
    show_table(
        ("run", "begun", "state", "attempts", "step", "faults", "dataset", "adapter"),
        map(_row, found),
        empty="No training runs yet.",
    )


def _row(run: TrainingRun) -> tuple[str, ...]:
    faults = [attempt.fault.kind for attempt in run.attempts if attempt.fault]
    return (
        run.id,
        moment(run.created_at),
        run.state,
        str(len(run.attempts)),
        str(run.attempts[-1].last_step if run.attempts else 0),
        ", ".join(faults),
        run.dataset_id,
        run.adapter_id or "",
    )
