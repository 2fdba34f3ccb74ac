"""``slm gpus``: whether the GPUs of this machine work, and what the driver's errors mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slm_core.cli.opening import load_settings
from slm_core.cli.terminal import JsonFlag, progress, show_facts, show_json, show_table

if TYPE_CHECKING:
    from slm_core.records import HealthReport

app = typer.Typer(no_args_is_help=True, help="GPUs.")


@app.command()
def check(
    active: Annotated[
        bool, typer.Option(help="Make each GPU work, which takes about half a minute.")
    ] = True,
    kernel_log: Annotated[
        Path | None, typer.Option(help="File with the kernel log; SLM_KERNEL_LOG by default.")
    ] = None,
    gpu: Annotated[
        list[str] | None,
        typer.Option(help="Only this one, by UUID, PCI address or index; may be repeated."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check every GPU before work. Status 0: they may be used; 1: some may not, or no answer.

    Nothing is reset or reloaded: what may help is printed, for a person to type.
    """
    settings = load_settings()
    from slm_core.health import HealthSpec, check_gpus
    from slm_core.records import Health

    with progress("check GPUs") as on_progress:
        report = check_gpus(
            HealthSpec(expected_gpus=settings.expected_gpus),
            kernel_log=kernel_log or settings.kernel_log,
            active=active,
            gpus=tuple(gpu or ()),
            on_progress=on_progress,
        )
    if as_json:
        show_json(report)
    else:
        _show(report)
    if report.health in (Health.FAIL, Health.UNKNOWN):
        raise typer.Exit(1)


@app.command()
def explain(xid: Annotated[int, typer.Argument(help="Number after `Xid` in the log.")]) -> None:
    """Say what an Xid of the kernel log means, and what to do."""
    from slm_core.health import xids

    row = xids.get(xid)
    show_facts(
        {
            "xid": str(row.code),
            "driver's name": row.name,
            "meaning": row.meaning,
            "to do": xids.WHAT_TO_DO[row.action],
            "weighs as": row.health.value,
        }
    )
    typer.echo(
        "\nBefore this table count: a fatal UVM error in the log (reboot), the newest Xid 154 "
        "(do what it asks for), and whether CUDA works on the other GPUs."
    )


def _show(report: HealthReport) -> None:
    from slm_core.health.findings import commands, next_action

    names = {gpu.uuid: f"{gpu.index}" for gpu in report.gpus}
    names |= {gpu.pci_bus_id: f"{gpu.index}" for gpu in report.gpus if gpu.is_mig}
    show_table(
        ("gpu", "uuid", "name", "address", "memory"),
        (
            (
                str(gpu.index),
                gpu.uuid,
                gpu.name,
                gpu.pci_bus_id,
                f"{gpu.memory_bytes / 2**30:.0f} GiB" if gpu.memory_bytes else "",
            )
            for gpu in report.gpus
        ),
        empty="No GPU was listed.",
    )
    show_table(
        ("health", "gpu", "check", "what was seen"),
        (
            (one.health.value, names.get(one.gpu or "", one.gpu or "all"), one.name, one.message)
            for one in report.checks
        ),
        empty="Nothing was checked.",
    )
    action = next_action(report)
    show_facts(
        {
            "health": report.health.value,
            "may be used": ", ".join(gpu.uuid for gpu in report.usable) or "none",
            "evidence": f"tier {report.tier.value} ({report.tier.name.lower().replace('_', ' ')})",
            "took": f"{report.seconds:.1f} s",
            **({"next": action.value.replace("_", " ")} if action else {}),
        }
    )
    for line in commands(report):
        typer.echo(f"  {line}")
