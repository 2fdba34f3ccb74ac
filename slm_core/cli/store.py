"""``slm store``: the database behind everything."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from slm_core.cli.opening import load_settings, opened_store
from slm_core.cli.terminal import JsonFlag, moment, progress, show_json, show_table
from slm_core.errors import ConfigError

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
def upgrade(
    to: Annotated[str | None, typer.Option(help="Revision; by default this version's.")] = None,
) -> None:
    """Make the store, or bring its tables up to this version, with all data."""
    from slm_core.store.schema import REVISION

    if to is None:
        with opened_store(load_settings(), create=True) as store:
            typer.echo(f"{store.url} is at revision {REVISION}.")
    else:
        _migrate(to, create=True)


@app.command()
def downgrade(
    to: Annotated[str, typer.Option(help="Revision to go back to, such as 0001.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Take the tables back to an older revision, for an older SLM Swap.

    All data goes along, but for what the older revision has no place for: 0002 does not know by
    what share and limits a canary was approved, or by which flow run. It refuses to drop
    approvals, counts of traffic, or calls whose texts were pruned.

    Stop every worker first: any command of this version brings the store forward again.
    """
    typer.echo(
        "Back up the store first (a copy of the file after `make down`, or pg_dump). Then stop "
        "all workers: this version brings the store forward again whenever it opens it.",
        err=True,
    )
    if not yes:
        typer.confirm(f"Go back to revision {to}?", abort=True, err=True)
    _migrate(to, create=False)


@app.command()
def prune(
    before: Annotated[str, typer.Option(help="First month that keeps everything: YYYY-MM.")],
    as_json: JsonFlag = False,
) -> None:
    """Take the texts of old calls that can never train; usable calls and all counts stay."""
    month = re.fullmatch(r"(\d{4})-(\d{2})", before)
    if month is None:
        raise ConfigError(f"--before takes a month such as 2026-09, not {before!r}.")
    with opened_store(load_settings()) as store, progress("Pruning"):
        earlier = store.calls.prunings()
        done = store.calls.prune(int(month[1] + month[2]))
    if as_json:
        show_json([one._asdict() for one in done])
        return
    show_table(
        ("month", "calls pruned", "calls kept"),
        ((f"{m // 100}-{m % 100:02}", f"{pruned:,}", f"{kept:,}") for m, kept, pruned, _ in done),
        empty=f"No call before {before} has texts that nothing needs.",
    )
    if earlier:
        taken = sum(one.pruned for one in earlier)
        typer.echo(f"Pruned earlier: {taken:,} calls, last on {moment(earlier[-1].created_at)}.")


def _migrate(to: str, *, create: bool) -> None:
    from slm_core.store import migrate_store

    with progress(f"Migrating to {to}"):
        found = migrate_store(load_settings().database_url, to, create=create)
    typer.echo(f"The store went from revision {found or 'none'} to {to}.")
