"""Records that look like real ones, each made by one call: ``make_call()``, ``make_dataset()``.

Every maker takes changes by keyword. The ids fit together: the adapter is of the dataset, the
evaluation and the decision are of the adapter.
"""

from __future__ import annotations

import math
from typing import Any

from slm_core.prompting.formats import render_completion
from slm_core.records import (
    TRACKS,
    Adapter,
    Attempt,
    Call,
    Claim,
    ClaimState,
    Dataset,
    Decision,
    DropReason,
    Example,
    Fault,
    GateResult,
    LossPoint,
    Message,
    Outcome,
    RunState,
    Tool,
    ToolUse,
    Track,
    TrainingRun,
    sha256_hex,
)
from slm_core.testing.scores import MADE_AT, make_arm, make_evaluation, make_metric

__all__ = [
    "make_adapter",
    "make_arm",
    "make_call",
    "make_claim",
    "make_dataset",
    "make_decision",
    "make_evaluation",
    "make_example",
    "make_losses",
    "make_metric",
    "make_training_run",
]

WEATHER = Tool(
    name="get_weather",
    description="Weather of a place on a day.",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
)


def make_call(number: int = 0, **changes: Any) -> Call:
    """Return a usable call of the ``toolcall`` track; other numbers ask other things."""
    use = ToolUse(name="get_weather", arguments={"city": f"Town {number}", "days": number % 7 + 1})
    values: dict[str, Any] = {
        "id": f"call-{number:06d}",
        "agent_type": "sub-agent",
        "agent_name": "weather-desk",
        "model": "gpt-4o",
        "conversation_id": f"conversation-{number:06d}",
        "messages": (
            Message(role="system", content="You call tools."),
            Message(role="user", content=f"Weather in Town {number}, {number % 7 + 1} days?"),
        ),
        "tools": (WEATHER,),
        "track": "toolcall",
        "response": render_completion("toolcall", [use]),
        "finish_reason": "stop",
        "success": True,
        "prompt_tokens": 210,
        "completion_tokens": 24,
        "cost_nanousd": 765_000,
        "seconds": 0.8,
        "created_at": MADE_AT,
    }
    return Call(**(values | changes))


def make_example(number: int = 0, track: Track = "toolcall", **changes: Any) -> Example:
    """Return a right answer to a question about the weather."""
    use = ToolUse(name="get_weather", arguments={"city": f"Town {number}", "days": number % 7 + 1})
    values: dict[str, Any] = {
        "id": f"example-{track}-{number:04d}",
        "track": track,
        "prompt": (
            Message(role="system", content="You call tools."),
            Message(role="user", content=f"Weather in Town {number}, {number % 7 + 1} days?"),
        ),
        "tools": (WEATHER,),
        "completion": render_completion(track, [use]),
        "calls": (use,),
        "conversation_id": f"conversation-{number:04d}",
        "domain": "weather",
        "source_call_id": f"call-{number:06d}",
    }
    return Example(**(values | changes))


def make_dataset(path: str = "/data/datasets/dataset-5b1f0c77", **changes: Any) -> Dataset:
    """Return a dataset of 300 calls, 280 of which became rows."""
    values: dict[str, Any] = {
        "id": "dataset-5b1f0c77a2d94e16",
        "path": path,
        "rows": {"train": 160, "val": 20, "test": 100},
        "files": {f"{split}.jsonl": sha256_hex(split) for split in ("train", "val", "test")},
        "calls": 300,
        "drops": {DropReason.FAILED: 9, DropReason.DUPLICATE: 7, DropReason.BAD_FORMAT: 4},
        "spec_digest": "spec-0f4c1b2a9d8e7766",
        "created_at": MADE_AT,
    }
    return Dataset(**(values | changes))


def make_claim(**changes: Any) -> Claim:
    """Return a claim of 100 calls that a run holds."""
    values: dict[str, Any] = {
        "id": "claim-000007",
        "size": 100,
        "state": ClaimState.RUNNING,
        "owner": "run-20260314-0300",
        "attempts": 1,
        "created_at": MADE_AT,
    }
    return Claim(**(values | changes))


def make_losses(steps: int = 100, val_every: int | None = 20) -> tuple[LossPoint, ...]:
    """Return a falling loss; ``val_every`` None gives no validation loss at all."""
    return tuple(
        LossPoint(
            step=step,
            epoch=step * 5 / steps,
            loss=2.4 * math.exp(-step / 18) + 0.06 + 0.05 * math.sin(step * 1.7) / (1 + step / 9),
            grad_norm=1.0 + 3 * math.exp(-step / 10),
            learning_rate=2e-3 * (1 - step / (steps + 1)),
            tokens_per_second=6_100.0,
            val_loss=2.1 * math.exp(-step / 20) + 0.11
            if val_every and step % val_every == 0
            else None,
        )
        for step in range(1, steps + 1)
    )


def make_training_run(**changes: Any) -> TrainingRun:
    """Return a run that ran out of memory once and then finished."""
    values: dict[str, Any] = {
        "id": "train-20260314-0304",
        "dataset_id": "dataset-5b1f0c77a2d94e16",
        "spec_digest": "spec-4411aa0c5be2f901",
        "path": "/data/runs/train-20260314-0304",
        "state": RunState.COMPLETED,
        "attempts": (
            Attempt(
                number=1,
                started_at=MADE_AT,
                ended_at=MADE_AT.replace(minute=1),
                last_step=37,
                fault=Fault(kind="out_of_memory", message="3.1 GiB asked, 2.0 GiB free", step=37),
                plan={"micro_batch": 8, "accumulation": 1, "max_tokens": 512},
            ),
            Attempt(
                number=2,
                started_at=MADE_AT.replace(minute=1),
                ended_at=MADE_AT.replace(minute=4),
                first_step=37,
                last_step=100,
                plan={"micro_batch": 4, "accumulation": 2, "max_tokens": 512},
            ),
        ),
        "adapter_id": "adapter-9c02d4e1f3a85b67",
        "created_at": MADE_AT,
    }
    return TrainingRun(**(values | changes))


def make_adapter(**changes: Any) -> Adapter:
    """Return a LoRA adapter of both tracks with its loss curve."""
    values: dict[str, Any] = {
        "id": "adapter-9c02d4e1f3a85b67",
        "path": "/data/runs/train-20260314-0304/adapter",
        "weights_sha256": sha256_hex("weights"),
        "base_model": "nano-student",
        "base_sha256": sha256_hex("base"),
        "dataset_id": "dataset-5b1f0c77a2d94e16",
        "run_id": "train-20260314-0304",
        "spec_digest": "spec-4411aa0c5be2f901",
        "cep_id": "cep-77aa01c2d3e4f509",
        "prompt_hash": sha256_hex("prompt"),
        "tracks": TRACKS,
        "code_version": "0.1.0+g1a2b3c4",
        "summary": {"steps": 100, "supervised_tokens": 24_310, "tokens_per_second": 6_100.0},
        "losses": make_losses(),
        "created_at": MADE_AT,
    }
    return Adapter(**(values | changes))


def make_decision(outcome: Outcome = "SUCCESS", **changes: Any) -> Decision:
    """Return a decision with passed, failed and open gates as ``outcome`` needs them."""
    gap = "fail" if outcome == "FAILURE" else "pass"
    domain = "inconclusive" if outcome == "PARTIAL" else "pass"
    values: dict[str, Any] = {
        "id": "decision-18f2ab3c4d5e6f70",
        "evaluation_id": "evaluation-e3d0a7b15c924f68",
        "adapter_id": "adapter-9c02d4e1f3a85b67",
        "outcome": outcome,
        "gates": (
            GateResult(
                gate="gap_to_teacher",
                track="structured",
                verdict=gap,
                value=0.07,
                threshold=0.0,
                n=50,
                reason="adapter minus teacher, field F1: +0.070 (0.010 to 0.120)",
            ),
            GateResult(
                gate="gap_to_teacher",
                track="toolcall",
                verdict="pass",
                value=0.036,
                threshold=0.0,
                n=50,
                reason="adapter minus teacher, args F1: +0.036 (0.002 to 0.086)",
            ),
            GateResult(
                gate="json_valid",
                track="structured",
                verdict="pass",
                value=1.0,
                threshold=0.9,
                n=50,
                reason="1.000 (0.929 to 1.000) is at least 0.900",
            ),
            GateResult(
                gate="domain_spread",
                verdict=domain,
                value=None if domain == "inconclusive" else 0.05,
                threshold=0.15,
                n=12,
                required=False,
                reason="12 rows a domain; 20 are needed to tell",
            ),
        ),
        "next_actions": {
            "SUCCESS": ("Promote to shadow: `slm promote adapter-9c02d4e1f3a85b67`.",),
            "PARTIAL": ("Collect 80 more cases of the rare domains and evaluate again.",),
            "FAILURE": (
                "Do not promote.",
                "Train with 5 epochs; the loss was still falling at the end.",
            ),
        }[outcome],
        "created_at": MADE_AT,
    }
    return Decision(**(values | changes))
