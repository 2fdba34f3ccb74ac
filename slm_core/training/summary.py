"""``training_summary.json``: what a finished run did, in plain numbers.

It becomes part of the adapter's record and card. It holds counts, ids and settings, never
text. A number that is not known is null; it is never estimated here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slm_core.records import Attempt, utc_now
from slm_core.training.convergence import EarlyStopping, Note, perplexity
from slm_core.training.events import StepEvent
from slm_core.training.plan import Plan
from slm_core.training.rows import Rows
from slm_core.training.spec import TrainingSpec
from slm_core.training.throughput import cost_usd, peak_flops, utilisation

EPOCHS_DONE = "epochs done"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """Everything that the summary is made from."""

    spec: TrainingSpec
    plan: Plan
    """Of the last attempt: how the run ended up being carried out."""
    train: Rows
    val: Rows
    steps: int
    """Optimizer steps taken, over all attempts."""
    tokens: int
    supervised_tokens: int
    seconds: float
    """Time inside steps, over all attempts."""
    gpu_seconds: float
    """The same, times the workers that each of those steps had."""
    flops: float | None = None
    """Model FLOPs of those steps; None leaves MFU out."""
    events: Sequence[StepEvent]
    """All logged steps, at least one."""
    notes: Sequence[Note] = ()
    """What the watch over the curves said."""
    early_stopping: EarlyStopping | None = None
    stop_reason: str = EPOCHS_DONE
    """That, or ``EarlyStopping.reason``."""
    published_step: int | None = None
    """Step of the published weights; None for the last."""
    attempts: Sequence[Attempt] = ()
    """Of the whole run, the present one included, in order."""
    attempt: int
    """Number of the present one."""
    recoveries: Sequence[str] = ()
    """What workers changed by themselves, one message each."""
    usd_per_hour: float | None = None
    """Price of that machine with all its GPUs."""
    trainable_parameters: int
    device: str
    """``torch.cuda.get_device_name()``, or ``cpu``."""
    precision: str
    """``bfloat16`` or ``float32``."""
    threads: int
    peak_memory_bytes: int
    peak_gpu_bytes: int | None = None


def build_summary(run: Finished) -> dict[str, Any]:
    """Return the summary, ready for JSON."""
    losses = [event.loss for event in run.events]
    val_losses = [event.val_loss for event in run.events if event.val_loss is not None]
    val_loss = _published_val_loss(run) if val_losses else None
    wall_seconds = _wall_seconds(run)
    cost = cost_usd(wall_seconds, run.usd_per_hour)
    return {
        "steps": run.steps,
        "epochs": run.spec.epochs,
        "stop_reason": run.stop_reason,
        "examples": len(run.train.kept),
        "val_examples": len(run.val.kept),
        "tokens": run.tokens,
        "supervised_tokens": run.supervised_tokens,
        "seconds": round(run.seconds, 3),
        "wall_seconds": round(wall_seconds, 3),
        "tokens_per_second": _rate(run.tokens, run.seconds),
        "supervised_tokens_per_second": _rate(run.supervised_tokens, run.seconds),
        "mfu": _mfu(run),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "best_loss": min(losses),
        "perplexity": perplexity(losses[-1]),
        "val_loss": val_loss,
        "best_val_loss": min(val_losses, default=None),
        "val_perplexity": perplexity(val_loss),
        "best_step": run.early_stopping.best_step if run.early_stopping else None,
        "published_step": run.published_step or run.steps,
        "notes": [f"step {note.step}: {note.message}" for note in run.notes],
        "attempts": run.attempt,
        "faults": _faults(run.attempts),
        "recoveries": list(run.recoveries),
        "plan_changes": list(run.plan.changes),
        "dropped": {
            "too_long": len(run.train.too_long) + len(run.val.too_long),
            "other_track": run.train.other_track + run.val.other_track,
            "uncuttable": len(run.train.uncuttable) + len(run.val.uncuttable),
        },
        "too_long_ids": [*run.train.too_long, *run.val.too_long],
        "uncuttable_ids": [*run.train.uncuttable, *run.val.uncuttable],
        "cut": run.train.cut_rows + run.val.cut_rows,
        "cut_tokens": run.train.cut_tokens + run.val.cut_tokens,
        "max_length": run.plan.max_length,
        "trainable_parameters": run.trainable_parameters,
        "device": run.device,
        "gpus": run.plan.world_size if run.peak_gpu_bytes is not None else 0,
        "precision": run.precision,
        "quantization": run.plan.quantization,
        "threads": run.threads,
        "peak_memory_bytes": run.peak_memory_bytes,
        "peak_gpu_bytes": run.peak_gpu_bytes,
        "usd_per_hour": run.usd_per_hour,
        "cost_usd": None if cost is None else round(cost, 6),
    }


def _published_val_loss(run: Finished) -> float | None:
    """Return the validation loss of the published weights, or the last one before them."""
    step = run.published_step or run.steps
    upto = [e.val_loss for e in run.events if e.val_loss is not None and e.step <= step]
    return upto[-1] if upto else None


def _wall_seconds(run: Finished) -> float:
    """Return the time of the machine, over all attempts: loading and validation included.

    An attempt whose watcher was killed has no known end and is left out.
    """
    known = [a for a in run.attempts if not (a.fault and a.fault.kind == "trainer_killed")]
    spans = [((a.ended_at or utc_now()) - a.started_at).total_seconds() for a in known]
    return max(sum(spans), run.seconds)


def _rate(count: int, seconds: float) -> float | None:
    return round(count / seconds, 1) if seconds > 0 else None


def _mfu(run: Finished) -> float | None:
    if run.flops is None:
        return None
    peak = peak_flops(run.device, run.precision)
    share = utilisation(run.flops, run.gpu_seconds, peak)
    return None if share is None else round(share, 4)


def _faults(attempts: Sequence[Attempt]) -> dict[str, int]:
    return dict(Counter(attempt.fault.kind for attempt in attempts if attempt.fault))
