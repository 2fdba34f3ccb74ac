"""``python -m slm_core.local_stack up | down | status``: what the Makefile calls."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import typer

from slm_core.errors import SlmError
from slm_core.local_stack.stack import LocalStack
from slm_core.settings import Settings

app = typer.Typer(add_completion=False, help="Run PostgreSQL, Prefect and workers on loopback.")


def _stack() -> LocalStack:
    return LocalStack(Settings.from_env(), Path.cwd(), on_progress=typer.echo)


@app.command()
def up() -> None:
    """Start what does not run yet, and register the deployments."""
    stack = _stack()
    dashboard = stack.up()
    typer.echo(f"\nDashboard  {dashboard}")
    typer.echo(f"Logs       {stack.home / 'logs'}")
    typer.echo(f"Shells     source {stack.shell_file}")
    typer.echo("Try        prefect deployment ls")


@app.command()
def down() -> None:
    """Stop the stack; data and logs stay."""
    _stack().down()
    typer.echo("The stack is down.")


@app.command()
def status() -> None:
    """Show every part of the stack."""
    parts = _stack().status()
    for part in parts:
        address = f"127.0.0.1:{part.port}" if part.port else ""
        word = "running" if part.running else "DEAD"
        typer.echo(f"{part.name:15} {word:8} {address:16} {part.log}")
    if not parts:
        typer.echo("The stack is down. `make up` starts it.")
    if not all(part.running for part in parts):
        raise typer.Exit(1)


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    try:
        app()
    except SlmError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        sys.exit(1)
