"""The run directory: what parent and worker tell each other, and the lock that guards it.

lock               held while a trainer, or a worker it left behind, is alive
spec.json          what the run learns; a resumed run must say the same
job.json           the parent's order to the present worker
attempts.json      one entry per worker process
events.jsonl       one line per logged step
recoveries.jsonl   one line per change that a worker made by itself, such as a split pass
worker.log         everything the workers wrote
error-RANK.json    why that rank of the last attempt refused or crashed, if it did
heartbeat-RANK     see heartbeat.py
rendezvous-N       where the ranks of attempt N meet
checkpoints/       see checkpoints.py
tensorboard/       event files
training_summary.json
adapter/           present only when the run is finished
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slm_core.errors import ConfigError, RunBusy, SpecChanged
from slm_core.records import Attempt, Record
from slm_core.system.locks import lock_within
from slm_core.training.durable import write_json
from slm_core.training.plan import Plan
from slm_core.training.spec import TrainingSpec

log = logging.getLogger(__name__)

ATTEMPT_MARK = "==== attempt"
"""Begins the line of ``worker.log`` after which an attempt's words follow."""

# A worker whose parent was killed is killed with it, but needs a moment to be gone.
_LOCK_WAIT_SECONDS = 1.0


class Identity(Record):
    """What a run learns. Two runs of equal identity make the same adapter."""

    run_id: str
    dataset_id: str
    files: dict[str, str]
    """Dataset file to SHA-256."""
    base_sha256: str
    spec_digest: str
    spec: TrainingSpec


class Job(Record):
    """The order to one worker. All paths are absolute."""

    identity: Identity
    attempt: int
    parent_pid: int
    """The worker ends when this process is no longer its parent."""
    dataset_path: str
    model_folder: str
    resume_from: str | None
    """Checkpoint folder to continue from."""
    plan: Plan
    usd_per_hour: float | None = None
    """Price of this machine, for the summary."""


class RunFolder:
    """Paths of one run, and the few files that parent and worker share."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.events = self.path / "events.jsonl"
        self.log = self.path / "worker.log"
        self.recoveries = self.path / "recoveries.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"
        self.summary = self.path / "training_summary.json"
        self.adapter = self.path / "adapter"
        self._identity = self.path / "spec.json"
        self._attempts = self.path / "attempts.json"
        self._job = self.path / "job.json"

    def heartbeat(self, rank: int) -> Path:
        """Where ``rank`` leaves its signs of life."""
        return self.path / f"heartbeat-{rank}"

    def error(self, rank: int) -> Path:
        """Where ``rank`` says why it refused or crashed."""
        return self.path / f"error-{rank}.json"

    def rendezvous(self, attempt: int) -> Path:
        """The file through which the ranks of ``attempt`` find each other."""
        return self.path / f"rendezvous-{attempt}"

    @contextmanager
    def lock(self) -> Iterator[int]:
        """Keep every other trainer out; yield the lock's handle for the worker to share.

        Raises:
            RunBusy: another trainer, or its worker, is at work in this folder.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not lock_within(handle, _LOCK_WAIT_SECONDS):
                raise RunBusy(f"Another trainer is at work in {self.path}; wait for it or stop it.")
            yield handle
        finally:
            os.close(handle)

    def settle_identity(self, identity: Identity) -> None:
        """Write down what this run learns, or compare with what it began with.

        A run that has nothing to show yet may still change its mind.

        Raises:
            SpecChanged: they differ; every key that does is named with both values.
        """
        if not (self._identity.is_file() and self._has_progress()):
            write_json(self._identity, identity.model_dump(mode="json"))
            return
        before = _flat(json.loads(self._identity.read_text("utf-8")))
        now = _flat(identity.model_dump(mode="json"))
        changed = {
            key: (before.get(key), now.get(key))
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key) and key != "spec_digest"
        }
        if changed:
            raise SpecChanged(
                f"The run in {self.path} began with other values for {', '.join(changed)}. "
                "Resume it with those, or train in a new run directory.",
                changed=changed,
            )

    def read_attempts(self) -> list[Attempt]:
        """Return the attempts so far, oldest first."""
        if not self._attempts.is_file():
            return []
        return [Attempt.model_validate(a) for a in json.loads(self._attempts.read_text("utf-8"))]

    def write_attempts(self, attempts: list[Attempt]) -> None:
        """Replace the list of attempts."""
        write_json(self._attempts, [attempt.model_dump(mode="json") for attempt in attempts])

    def mark_log(self, attempt: Attempt) -> None:
        """Let the log of all attempts say where this one begins."""
        why = " ".join(attempt.reason.split())
        line = f"{attempt.started_at:%Y-%m-%d %H:%M:%S} UTC, after step {attempt.first_step}: {why}"
        try:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(f"{ATTEMPT_MARK} {attempt.number} {line}\n")
        except OSError as error:  # it is for readers only
            log.warning("attempt not marked in the log number=%d: %s", attempt.number, error)

    def write_job(self, job: Job) -> None:
        """Leave the order for the workers, and forget what those before have said."""
        for pattern in ("error-*.json", "heartbeat-*", "rendezvous-*"):
            for said in self.path.glob(pattern):
                said.unlink()
        write_json(self._job, job.model_dump(mode="json"))

    def read_job(self) -> Job:
        """Return the parent's order.

        Raises:
            ConfigError: there is none; the worker was not started by ``train``.
        """
        if not self._job.is_file():
            raise ConfigError(f"{self.path} holds no job.json; workers are started by train().")
        return Job.model_validate_json(self._job.read_bytes())

    def _has_progress(self) -> bool:
        saved = self.checkpoints.is_dir() and any(self.checkpoints.iterdir())
        return saved or self.adapter.is_dir()


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {prefix + key: item}
    return flat
