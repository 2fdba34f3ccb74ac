"""``slm datasets``: what was trained and tested on."""

from __future__ import annotations

import typer

from slm_core.cli.opening import load_settings, opened_store
from slm_core.cli.terminal import JsonFlag, moment, show_facts, show_json, show_table
from slm_core.records import SPLITS, Dataset

app = typer.Typer(no_args_is_help=True, help="Frozen datasets.")


@app.command("list")
def list_datasets(as_json: JsonFlag = False) -> None:
    """List every dataset, oldest first."""
    with opened_store(load_settings()) as store:
        found = store.datasets.list()
    if as_json:
        show_json(found)
        return
    show_table(
        ("dataset", "made", "calls", *SPLITS),
        ((one.id, moment(one.created_at), str(one.calls), *_rows(one)) for one in found),
        empty="No datasets yet.",
    )


@app.command()
def show(dataset_id: str, as_json: JsonFlag = False) -> None:
    """Show one dataset: its rows, and why calls are not in it."""
    with opened_store(load_settings()) as store:
        found = store.datasets.get(dataset_id)
    if as_json:
        show_json(found)
        return
    show_facts(
        {
            "dataset": found.id,
            "made": moment(found.created_at),
            "path": found.path,
            "calls": str(found.calls),
            **dict(zip(SPLITS, _rows(found), strict=True)),
            **{f"left out: {reason}": str(n) for reason, n in found.drops.items()},
            "test rows kept out of training": ", ".join(found.parent_test_ids) or "none",
        }
    )


def _rows(dataset: Dataset) -> tuple[str, ...]:
    return tuple(str(dataset.rows.get(split, 0)) for split in SPLITS)
