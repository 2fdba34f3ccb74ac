"""The command itself: run every check, show what was seen and how to mend it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from slm_core.cli.terminal import JsonFlag, progress, show_json, show_table
from slm_core.errors import ConfigError

if TYPE_CHECKING:
    from slm_core.cli.doctor.findings import Finding


def doctor(
    only: Annotated[
        list[str] | None, typer.Option(help="Only this check; may be repeated.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check everything that the service needs, in less than 15 seconds.

    Status 1 if anything fails. Nothing is changed: what mends it is printed, for a person to type.
    What could not be asked is UNKNOWN, never PASS.
    """
    from slm_core.records import Health
    from slm_core.records.health import worst

    began = time.monotonic()
    found = _examine(only)
    health = worst(finding.health for finding in found)
    seconds = round(time.monotonic() - began, 1)
    if as_json:
        show_json({"health": health, "seconds": seconds, "findings": found})
    else:
        show_table(
            ("health", "check", "what was seen"),
            ((one.health.value, one.check, one.seen) for one in found),
            empty="Nothing was checked.",
        )
        for one in found:
            if one.mend:
                typer.echo(f"{one.health.value} {one.check}:")
                typer.echo("\n".join(f"  {line}" for line in one.mend))
        counts = {kind: sum(one.health is kind for one in found) for kind in Health}
        typer.echo(
            f"\n{health.value}: "
            + ", ".join(f"{n} {kind.value}" for kind, n in counts.items() if n)
            + f" in {seconds} s"
        )
    if any(one.health is Health.FAIL for one in found):
        raise typer.Exit(1)


def _examine(only: list[str] | None) -> list[Finding]:
    from slm_core.cli.doctor.findings import Finding, examine
    from slm_core.cli.doctor.table import OF_MACHINE, OF_SITE
    from slm_core.cli.opening import load_settings
    from slm_core.records import Health
    from slm_core.settings import Settings

    checks = (*OF_MACHINE, *OF_SITE)
    if only:
        unheard_of = sorted(set(only) - {check.name for check in checks})
        if unheard_of:
            raise ConfigError(
                f"There is no check {', '.join(unheard_of)}. There are: "
                f"{', '.join(check.name for check in checks)}."
            )
        checks = tuple(check for check in checks if check.name in only)
    with progress("checking") as on_progress:
        try:
            settings = load_settings(log_level="ERROR")
        except ConfigError as error:
            # The rest would look into places that nobody meant.
            left = tuple(check for check in checks if check in OF_MACHINE)
            found = examine(left, Settings.from_env({}), on_progress)
            mend = ("the README lists every setting and its form",)
            return [
                *found,
                Finding(check="settings", health=Health.FAIL, seen=str(error), mend=mend),
            ]
        return examine(checks, settings, on_progress)
