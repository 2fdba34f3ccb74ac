"""The run's attempts: on disk after every change, and told to the caller."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import ValidationError

from slm_core.errors import DiskFull
from slm_core.records import Attempt, Fault, utc_now
from slm_core.training.plan import Plan
from slm_core.training.run_folder import Job, RunFolder

log = logging.getLogger(__name__)

OnAttempt = Callable[[Attempt], None]


class AttemptLog:
    """All attempts of a run, oldest first."""

    def __init__(self, run: RunFolder, on_attempt: OnAttempt | None) -> None:
        self._run = run
        self._tell = on_attempt
        self._all = run.read_attempts()
        if self._all and self._all[-1].ended_at is None:
            fault = Fault(kind="trainer_killed", message="the process that watched it was killed")
            self.end(self._all[-1].last_step, fault)
        self._begun_before = len(self._all)

    @property
    def next_number(self) -> int:
        """Number of the attempt that comes next."""
        return len(self._all) + 1

    @property
    def earlier(self) -> Sequence[Attempt]:
        """Attempts of earlier calls."""
        return self._all[: self._begun_before]

    @property
    def present(self) -> Sequence[Attempt]:
        """Attempts of this call."""
        return self._all[self._begun_before :]

    @property
    def all(self) -> Sequence[Attempt]:
        """Every attempt of the run."""
        return self._all

    @property
    def last_plan(self) -> Plan | None:
        """Plan of the newest attempt."""
        return _plan_of(self._all[-1]) if self._all else None

    def begin(self, job: Job, first_step: int, reason: str) -> None:
        """Note that a worker is about to be started."""
        attempt = Attempt(
            number=job.attempt,
            started_at=utc_now(),
            first_step=first_step,
            last_step=first_step,
            plan=job.plan.model_dump(mode="json"),
            reason=reason,
        )
        self._all.append(attempt)
        self._write()
        self._run.mark_log(attempt)
        self._say()

    def look(self) -> None:
        """Note what the worker has changed by itself since the last look."""
        found = self._recoveries()
        if found != self._all[-1].recoveries:
            self._update(recoveries=found)

    def end(self, last_step: int, fault: Fault | None) -> None:
        """Note how the present attempt ended, or, later, what an examination added."""
        ended_at = self._all[-1].ended_at or utc_now()
        recoveries = self._recoveries()
        self._update(ended_at=ended_at, last_step=last_step, fault=fault, recoveries=recoveries)

    def _update(self, **values: Any) -> None:
        self._all[-1] = self._all[-1].model_copy(update=values)
        try:
            self._write()
        except DiskFull as problem:
            # What ended the attempt matters more, and is about to be raised.
            log.error("attempt could not be written down: %s", problem)
        self._say()

    def _write(self) -> None:
        self._run.write_attempts(self._all)

    def _say(self) -> None:
        if self._tell:
            self._tell(self._all[-1])

    def _recoveries(self) -> tuple[str, ...]:
        return tuple(_read_messages(self._run, self._all[-1].number))


def _read_messages(run: RunFolder, attempt: int) -> list[str]:
    """Return what the workers of ``attempt`` wrote into the file that all attempts share."""
    if not run.recoveries.is_file():
        return []
    messages: list[str] = []
    for line in run.recoveries.read_bytes().splitlines():
        try:
            said = json.loads(line)
            if said["attempt"] == attempt:
                messages.append(f"step {said['step']}: {said['message']}")
        except (ValueError, KeyError, TypeError):
            log.warning("unreadable recovery skipped bytes=%d", len(line))
    return messages


def _plan_of(attempt: Attempt) -> Plan | None:
    try:
        return Plan.model_validate(attempt.plan)
    except ValidationError:
        log.warning("plan of attempt %d is of another version, ignored", attempt.number)
        return None
