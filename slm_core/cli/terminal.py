"""What commands share: the options that several take, and how results are shown.

Results go to stdout, as tables for people or as JSON for machines; progress and warnings go
to stderr. Cells are plain text, whatever brackets an agent's name may hold.
"""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
Reason = Annotated[str, typer.Option(help="Why, for the record.")]

_WIDTH_OF_A_PIPE = 200
"""Columns where stdout is no terminal, so that ids stay on one line."""


def show_json(value: Any) -> None:
    """Print records, or plain data that may hold some."""
    from pydantic_core import to_json

    typer.echo(to_json(value, indent=2).decode())


def show_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, empty: str) -> None:
    """Print a table whose first column is never broken; ``empty`` if it has no rows."""
    from rich import box
    from rich.table import Table

    rows = list(rows)
    if not rows:
        typer.echo(empty)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, no_wrap=number == 0, overflow="fold")
    for row in rows:
        table.add_row(*row)
    _print(table)


def show_facts(facts: dict[str, str]) -> None:
    """Print names and values, one pair per line."""
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts.items():
        grid.add_row(name, value)
    _print(grid)


def warn(message: str) -> None:
    """Say on stderr what is worth knowing, though the command goes on."""
    typer.secho(message, fg=typer.colors.YELLOW, err=True)


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """Yield an ``on_progress`` that moves a bar on stderr, if that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total, _: bar.update(task, completed=done, total=total)


def moment(when: datetime) -> str:
    """Return a time as people read it: ``2026-03-14 03:00 UTC``."""
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def span(seconds: float) -> str:
    """Return a length of time as people say it: ``3 h 12 min``."""
    whole = int(seconds)
    for size, name, smaller, part in (
        (86_400, "d", 3_600, "h"),
        (3_600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // smaller} {part}"
    return f"{whole} s"


def age(when: datetime) -> str:
    """Return how long ago ``when`` was."""
    return span(max(0.0, (datetime.now(UTC) - when.astimezone(UTC)).total_seconds()))


def current_user() -> str:
    """Return who runs the command, for the record of what they did."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container may run under a number that nobody has
        return f"uid {os.getuid()}"


def _print(content: Any) -> None:
    from rich.console import Console

    width = None if sys.stdout.isatty() else _WIDTH_OF_A_PIPE
    Console(width=width, markup=False, highlight=False, emoji=False).print(content)
