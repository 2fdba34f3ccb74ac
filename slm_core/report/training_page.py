"""What was trained, as Markdown for the dashboard: figures, attempts with reasons, loss curve."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from slm_core.records import Adapter, Attempt, Dataset, LossPoint, TrainingRun
from slm_core.report.markdown import escape
from slm_core.report.words import duration, usd

_POINTS = 40
"""Points of a loss curve; more do not show."""
_DARK_LINE = '%%{init: {"themeVariables": {"xyChart": {"plotColorPalette": "#4338ca"}}}}%%'
"""Mermaid draws its first line in a yellow that white swallows."""


class LiveTraining(NamedTuple):
    """How far a training is."""

    run_id: str
    points: Sequence[LossPoint]
    """The logged steps, in order."""
    total_steps: int | None
    """None before the first step."""
    eta_seconds: float | None
    gpu_bytes: int | None
    """Most GPU memory held so far."""
    cost_usd: float | None
    """So far; None where the machine's price is not known."""
    attempts: Sequence[Attempt]
    links: Mapping[str, str]
    """Where to look further, as Markdown."""


def live_markdown(live: LiveTraining) -> str:
    """Return one short page: figures, loss curve, the attempts with what was changed, links."""
    facts: dict[str, str] = {}
    if live.points:
        last, total = live.points[-1], live.total_steps or live.points[-1].step
        best = min(live.points, key=lambda point: point.loss)
        facts["step"] = f"{last.step} of {total} ({100 * last.step / total:.0f} %)"
        if live.eta_seconds is not None and last.step < total:
            facts["time left"] = duration(live.eta_seconds)
        facts["loss"] = f"{last.loss:.4f}, at best {best.loss:.4f} at step {best.step}"
        validated = [point for point in live.points if point.val_loss is not None]
        if validated:
            lowest = min(validated, key=lambda point: point.val_loss or 0.0)
            facts["validation loss"] = (
                f"{validated[-1].val_loss:.4f}, at best {lowest.val_loss:.4f} at step {lowest.step}"
            )
        facts["speed"] = f"{last.tokens_per_second:,.0f} tokens/s"
    else:
        facts["step"] = "none yet: the worker loads the model"
    if live.gpu_bytes is not None:
        facts["GPU memory at most"] = f"{live.gpu_bytes / 2**30:.1f} GiB"
    if live.cost_usd is not None:
        facts["cost so far"] = usd(live.cost_usd)
    parts = [f"## {escape(live.run_id)}", _table(("what", "now"), facts.items())]
    if len(live.points) > 1:
        parts.append(_curve(live.points))
    if live.attempts:
        rows = attempt_rows(live.attempts)
        parts.append(_table(tuple(rows[0]), (tuple(row.values()) for row in rows)))
    parts += ["\n".join(f"- {name}: {where}" for name, where in live.links.items())]
    return "\n\n".join(part for part in parts if part) + "\n"


def training_markdown(
    trained: Sequence[tuple[Adapter, TrainingRun | None]], dataset: Dataset
) -> str:
    """Return one section for each adapter, and what to do next."""
    sections = [_section(adapter, run, dataset) for adapter, run in trained]
    commands = [
        f"`prefect deployment run eval/cep -p adapter_id={adapter.id}`" for adapter, _ in trained
    ]
    after = f"## Next\n\nScore it against the teacher: {', then '.join(commands)}."
    return "\n\n".join([*sections, after]) + "\n"


def attempt_rows(attempts: Sequence[Attempt]) -> list[dict[str, str]]:
    """Return the attempts as rows of a table: what each did, and why it was planned so."""
    return [
        {
            "attempt": str(attempt.number),
            "steps": _steps(attempt),
            "plan": _plan(attempt),
            "why this plan": attempt.reason or ("first plan" if number == 0 else "resumed"),
            "changed by the worker": "; ".join(attempt.recoveries) or "nothing",
            "ended by": _end(attempt),
        }
        for number, attempt in enumerate(attempts)
    ]


def _section(adapter: Adapter, run: TrainingRun | None, dataset: Dataset) -> str:
    facts = {
        "base model": adapter.base_model,
        "tracks": ", ".join(adapter.tracks),
        "context prefix": adapter.cep_id or "none",
        "dataset": f"{dataset.id}, {dataset.rows.get('train', 0)} rows to train on and "
        f"{dataset.rows.get('val', 0)} to validate",
        "folder": adapter.path,
    }
    for name, value in adapter.summary.items():
        if isinstance(value, str | int | float):
            facts.setdefault(name.replace("_", " "), _figure(value))
    parts = [f"## {adapter.id}", _table(("what", "value"), facts.items())]
    if run is not None and run.attempts:
        rows = attempt_rows(run.attempts)
        parts.append(_table(tuple(rows[0]), (tuple(row.values()) for row in rows)))
    if len(adapter.losses) > 1:
        parts.append(_curve(adapter.losses))
    return "\n\n".join(parts)


def _curve(logged: Sequence[LossPoint]) -> str:
    """Return the loss by step as a Mermaid chart, which Prefect draws."""
    points = logged[:: -(-len(logged) // _POINTS)]
    losses = ", ".join(f"{point.loss:.4f}" for point in points)
    return "\n".join(
        [
            "```mermaid",
            _DARK_LINE,
            "xychart-beta",
            '    title "Training loss"',
            f'    x-axis "step" {points[0].step} --> {points[-1].step}',
            '    y-axis "nats per token"',
            f"    line [{losses}]",
            "```",
        ]
    )


def _steps(attempt: Attempt) -> str:
    if attempt.ended_at is None:
        return f"from {attempt.first_step} on"
    return f"{attempt.first_step} to {attempt.last_step}"


def _plan(attempt: Attempt) -> str:
    plan = attempt.plan
    said = [
        f"{plan[name]} {what}"
        for name, what in (("pass_rows", "rows a pass"), ("max_length", "tokens a row at most"))
        if name in plan
    ]
    if plan.get("gradient_checkpointing"):
        said.append("gradient checkpointing")
    if plan.get("quantization", "none") != "none":
        said.append(str(plan["quantization"]))
    if (workers := int(plan.get("world_size", 1))) > 1:
        said.append(f"{workers} workers")
    return "; ".join([*said, *map(str, plan.get("changes", ()))])


def _end(attempt: Attempt) -> str:
    if attempt.fault is not None:
        return f"{attempt.fault.kind}: {attempt.fault.message}"
    return "not yet" if attempt.ended_at is None else "its end"


def _figure(value: str | float) -> str:
    if isinstance(value, str | bool):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.5g}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *(map(escape, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
