"""Flow ``check-gpus``: may the GPUs of this machine be trained on? Repairs nothing."""

from __future__ import annotations

from typing import Any

from prefect import State, flow
from prefect.artifacts import create_markdown_artifact
from prefect.states import Completed, Failed

from slm_core.health.findings import commands, next_action
from slm_core.records import Health, HealthReport
from slm_core.report.markdown import escape, table_lines
from tasks import health
from tasks._artifacts import showing


@flow(name="check-gpus")
def check_gpus(active: bool = True, gpus: tuple[str, ...] = ()) -> HealthReport | State[Any]:
    """Check the GPUs and publish the preflight report.

    Args:
        active: make each GPU work; without it only kernel and driver are asked.
        gpus: those to check, by UUID, PCI address or index; empty takes all.
    """
    report = health.check_gpus(active=active, gpus=gpus)
    with showing("preflight"):
        create_markdown_artifact(
            _markdown(report), key="preflight", description=f"{report.health}: GPUs of this machine"
        )
    if report.health in (Health.PASS, Health.WARN):
        return report
    worst = next(check for check in report.checks if check.health is report.health)
    if report.health is Health.UNKNOWN and not report.gpus and not _any_trouble(report):
        return Completed(name="NoGpus", message=worst.message)
    action = next_action(report)
    to_do = f" Next: {action.value.replace('_', ' ')}." if action else ""
    return Failed(message=f"{report.health}: {worst.message}{to_do}")


def _any_trouble(report: HealthReport) -> bool:
    """Whether more is unknown than which GPUs there are, where none is expected."""
    count = next((check for check in report.checks if check.name == "gpu_count"), None)
    return count is None or count.health is not Health.UNKNOWN


def _markdown(report: HealthReport) -> str:
    action = next_action(report)
    lines = [
        f"# GPUs: {report.health}",
        "",
        f"{len(report.usable)} of {len(report.gpus)} may be used. Evidence tier "
        f"{report.tier.value} ({report.tier.name.lower().replace('_', ' ')}), "
        f"{report.seconds:.1f} s, boot `{report.boot_id}`.",
        "",
        *table_lines(
            ("health", "gpu", "check", "what was seen"),
            [
                (one.health, escape(one.gpu or "all"), escape(one.name), escape(one.message))
                for one in report.checks
            ],
            left=4,
        ),
    ]
    if action is not None:
        lines += ["", f"Next: **{action.value.replace('_', ' ')}**. Nothing was run."]
        typed = commands(report)
        lines += ["", "```", *typed, "```"] if typed else []
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    check_gpus()
