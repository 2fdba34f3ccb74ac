"""``slm store``: the database behind everything."""

from __future__ import annotations

import typer

from slm_core.cli.opening import load_settings, opened_store
from slm_core.cli.terminal import JsonFlag, progress, show_json

app = typer.Typer(no_args_is_help=True, help="The database of all records.")


@app.command()
def verify(as_json: JsonFlag = False) -> None:
    """Re-hash everything in the store; status 1 if anything is not what its hash says."""
    with opened_store(load_settings()) as store, progress("Verifying"):
        wrong = store.verify()
    if as_json:
        show_json(wrong)
    else:
        typer.echo("\n".join(wrong) or f"{store.url}: everything is what its hash says.")
    if wrong:
        raise typer.Exit(1)


@app.command()
def upgrade() -> None:
    """Make the store, or bring its tables up to this version."""
    from slm_core.store.schema import REVISION

    with opened_store(load_settings(), create=True) as store:
        typer.echo(f"{store.url} is at revision {REVISION}.")
