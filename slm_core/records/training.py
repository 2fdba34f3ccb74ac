"""The third noun: an adapter, and the run with its attempts that made it."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import Field

from slm_core.records.base import Record, Track, utc_now


class RunState(StrEnum):
    """Where a training run stands."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    """Stopped by a signal, checkpoint saved; resume it."""


class Fault(Record):
    """Why an attempt ended early, named by one table."""

    kind: str
    """For example ``out_of_memory``, ``worker_killed``, ``diverged``, ``interrupted``."""
    message: str
    step: int | None = None
    exit_code: int | None = None
    rank: int | None = None
    """Worker process that failed first, where there are several."""
    details: dict[str, Any] = Field(default_factory=dict)
    """Numbers behind it: memory in use, tokens of the pass, kernel-log lines, the triage."""
    detected_after_seconds: float | None = None
    """From the last sign of life to the moment it was noticed."""


class Attempt(Record):
    """One worker process of a run."""

    number: int
    started_at: datetime
    ended_at: datetime | None = None
    first_step: int = 0
    last_step: int = 0
    fault: Fault | None = None
    plan: dict[str, Any] = Field(default_factory=dict)
    reason: str = ""
    """Why this plan: what the attempt before ran into."""
    recoveries: tuple[str, ...] = ()
    """What the worker changed by itself, such as a pass that it split after running out of
    memory."""


class TrainingRun(Record):
    """One training of one adapter, over all its attempts."""

    id: str
    dataset_id: str
    spec_digest: str
    path: str
    """Run directory: checkpoints, events, logs."""
    state: RunState
    attempts: tuple[Attempt, ...] = ()
    adapter_id: str | None = None
    created_at: datetime = Field(default_factory=utc_now)


class LossPoint(Record):
    """One logged optimizer step."""

    step: int
    epoch: float
    loss: float
    """Mean cross-entropy per supervised token, in nats."""
    grad_norm: float
    learning_rate: float
    tokens_per_second: float
    val_loss: float | None = None


class Adapter(Record):
    """A LoRA adapter and everything that made it."""

    id: str
    """Hash of the weights and of what follows."""
    path: str
    """PEFT directory, loadable by plain ``peft``."""
    weights_sha256: str
    base_model: str
    base_sha256: str
    """Of the base model's weights: the adapter fits no other."""
    dataset_id: str
    run_id: str
    spec_digest: str
    cep_id: str | None
    prompt_hash: str
    """Of chat template, CEP and tool format; serving refuses any other."""
    tracks: tuple[Track, ...]
    code_version: str
    summary: dict[str, Any] = Field(default_factory=dict)
    """Steps, tokens, tokens per second, final losses, attempts."""
    losses: tuple[LossPoint, ...] = ()
    created_at: datetime = Field(default_factory=utc_now)
