"""One run on one screen: facts, trainings with their attempts, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from slm_core.cli.run_account import PartAccount, RunAccount
from slm_core.cli.run_next import RUNBOOK, NextStep
from slm_core.cli.terminal import age, moment, show_facts, show_table, span
from slm_core.records import Attempt


def show_run(
    found: RunAccount,
    decision: str | None,
    checkpoints: dict[str, list[dict[str, Any]]],
    flow_run: dict[str, Any] | None,
    step: NextStep,
) -> None:
    """Print all that is known of a run.

    Args:
        found: the run.
        decision: the verdict on it, in words.
        checkpoints: by training, as ``checkpoints_of`` returns them.
        flow_run: what Prefect knows of it; None for nothing.
        step: the next action.
    """
    facts = {
        "run": f"{found.run_id}  ({found.flow}{', ' + found.reason if found.reason else ''})",
        "state": f"{found.state}, stage: {found.stage}",
        "why": found.why,
        "begun": f"{moment(found.created_at)}, {age(found.created_at)} ago",
        "host": found.host,
        "folder": found.folder or "",
        "claim": _claim(found),
        "dataset": found.dataset_id or "",
        "evaluation": found.evaluation or "",
        "decision": decision or found.outcome or "",
        "report": found.report or "",
        "prefect": _prefect_words(flow_run),
    }
    show_facts({name: value for name, value in facts.items() if value})
    for part in found.parts:
        _show_part(part, checkpoints[part.run_id])
    typer.echo(f"\nNext: {step.words}")
    for line in step.commands:
        typer.echo(f"  {line}")
    if step.page:
        typer.echo(f"  ({RUNBOOK}#{step.page})")


def checkpoints_of(part: PartAccount) -> list[dict[str, Any]]:
    """Return the checkpoints of a training, newest first, down to the first sound one."""
    from slm_core.training.checkpoints import look

    return [
        {"step": seen.step, "path": str(seen.path), "problem": seen.problem}
        for seen in look(Path(part.folder) / "checkpoints")
    ]


def _show_part(part: PartAccount, checkpoints: list[dict[str, Any]]) -> None:
    typer.echo(f"\nTraining {part.run_id}")
    left = f", {span(part.eta_seconds)} left" if part.eta_seconds else ""
    beat = part.beat_seconds_ago
    words = [
        f"{'newest sound' if one['problem'] is None else 'not sound'}: step {one['step']}"
        + (f" ({one['problem']})" if one["problem"] else f"  {one['path']}")
        for one in checkpoints
    ]
    facts = {
        "folder": part.folder,
        "step": f"{part.step} of {part.total_steps or '?'}{left}",
        "last sign of life": "" if beat is None else f"{span(beat)} ago",
        "checkpoints": "\n".join(words) or "none",
        "adapter": part.adapter_id or "",
    }
    show_facts({name: value for name, value in facts.items() if value})
    show_table(
        ("attempt", "began", "steps", "plan", "why this plan", "ended by"),
        map(_attempt_row, part.attempts),
        empty="No attempt yet.",
    )


def _attempt_row(attempt: Attempt) -> tuple[str, ...]:
    fault = attempt.fault
    ended = f"{fault.kind}: {fault.message}" if fault else ("done" if attempt.ended_at else "")
    return (
        str(attempt.number),
        moment(attempt.started_at),
        f"{attempt.first_step} to {attempt.last_step}",
        _plan(attempt.plan),
        "; ".join([attempt.reason, *attempt.recoveries]),
        ended,
    )


def _plan(plan: dict[str, Any]) -> str:
    if not plan:
        return ""
    words = [
        f"{plan.get('rows_per_step', '?')} rows a step, {plan.get('pass_rows', '?')} a pass",
        f"length {plan.get('max_length', '?')}",
        f"{plan.get('world_size', 1)} worker(s)",
        *plan.get("changes", ()),
    ]
    return ", ".join(words)


def _claim(run: RunAccount) -> str:
    if run.claim is None:
        return run.claim_id or ""
    claim = run.claim
    holder = f", held by {claim.owner}" if claim.owner else ""
    return f"{claim.id}  {claim.state}{holder}, {claim.size} calls, attempt {claim.attempts}"


def _prefect_words(flow_run: dict[str, Any] | None) -> str:
    if flow_run is None:
        return ""
    said = f": {flow_run['message']}" if flow_run["message"] else ""
    return f"{flow_run['name']}, {flow_run['state']}{said}  {flow_run['url']}"
