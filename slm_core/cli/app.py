"""All commands under one name, and what becomes of their errors.

An error of ours ends in one red message on stderr: status 2 for what the caller has to set
otherwise, 1 for the rest. Ctrl-C ends with 130. Any other exception is a bug and keeps its
traceback.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from slm_core import __version__
from slm_core.cli import (
    adapters,
    calls,
    claims,
    datasets,
    evaluations,
    gpus,
    models,
    routes,
    runs,
    store,
    traces,
    train,
)
from slm_core.cli.ask import ask
from slm_core.cli.doctor.command import doctor
from slm_core.cli.serve import serve
from slm_core.cli.status import status
from slm_core.errors import ConfigError, SlmError


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SlmError as error:
            typer.secho(f"{type(error).__name__}: {error}", fg=typer.colors.RED, err=True)
            raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from error


app = typer.Typer(
    cls=_Commands,
    help="Replace a hosted LLM with a small local model, and prove that it is safe.",
    no_args_is_help=True,
    add_completion=False,
    # Tracebacks stay plain: the decorated ones may show the values of variables.
    pretty_exceptions_enable=False,
)
app.command()(serve)
app.command()(ask)
app.command()(doctor)
app.command()(status)
app.add_typer(calls.app, name="calls")
app.add_typer(datasets.app, name="datasets")
app.add_typer(models.app, name="models")
app.add_typer(train.app, name="train")
app.add_typer(runs.app, name="runs")
app.add_typer(claims.app, name="claims")
app.add_typer(evaluations.app, name="evaluations")
app.add_typer(adapters.app, name="adapters")
app.add_typer(routes.app, name="routes")
app.add_typer(traces.app, name="traces")
app.add_typer(store.app, name="store")
app.add_typer(gpus.app, name="gpus")


def main() -> None:
    """Run the command that the process was started with, and exit with its status."""
    app()


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"slm {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass
