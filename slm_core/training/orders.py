"""What a run was told to do, on disk before it begins: all that is needed to go on with it.

Each run has ``runs/RUN/order.json`` and a lock beside it, which the kernel frees when the
process at work dies, however it dies. So a crashed run is one whose order says *running* while
nobody holds its lock. Whoever resumes goes by the order, not by today's presets.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from slm_core.errors import (
    ConfigError,
    DiskFull,
    GpuFault,
    RecordNotFound,
    RecoveryExhausted,
    RunBusy,
    SlmError,
)
from slm_core.records import Record, RunState, utc_now
from slm_core.system.locks import lock_within, try_lock
from slm_core.training.durable import write_json
from slm_core.training.spec import TrainingSpec

log = logging.getLogger(__name__)

# A process that was just killed needs a moment to be gone.
_LOCK_WAIT_SECONDS = 1.0
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")


class Part(Record):
    """One training of a run; most runs have one, some have one for each track."""

    run_id: str
    """Of the training: its folder under ``runs`` and its record in the store."""
    training: TrainingSpec
    """As it began; a resumed training must have the same."""


class Order(Record):
    """What a run was told, and how far it came."""

    run_id: str
    flow: Literal["train", "retrain"]
    spec: dict[str, Any]
    """The whole plan: a TrainSpec or a RetrainSpec as JSON."""
    claim_id: str | None = None
    """The claim that a retraining holds."""
    dataset_id: str | None = None
    """None until the run has one."""
    reason: str = ""
    """Who asked, for the record."""
    flow_run_id: str | None = None
    """Of the Prefect run that last took it up: the outermost one, whose process it is."""
    host: str = Field(default_factory=socket.gethostname)
    """Where it was last taken up."""
    parts: tuple[Part, ...] = ()
    """Its trainings; empty until they are about to begin."""
    state: RunState = RunState.RUNNING
    why: str = ""
    """Of a run that did not complete: the error that ended it."""
    needs_person: bool = False
    """Of a run that did not complete: doing the same again would end in the same way."""
    cancelled: bool = False
    """Of a run that was interrupted: a person stopped it, and nobody is to be called for it."""
    stops: int = 0
    """How often its worker was stopped under it; no fault of the run, so no attempt of it."""
    created_at: datetime = Field(default_factory=utc_now)


def state_after(error: BaseException) -> RunState:
    """Return how a run stands after ``error``: interrupted if going on later can help.

    A full disk, a sick GPU and a signal are seen to outside of the run. A wrong dataset or spec
    is not.
    """
    if not isinstance(error, SlmError) or error.retryable:
        return RunState.INTERRUPTED
    outside = isinstance(error, DiskFull | GpuFault | RecoveryExhausted)
    return RunState.INTERRUPTED if outside else RunState.FAILED


class OrderBook:
    """The orders of all runs under one folder."""

    def __init__(self, runs: Path) -> None:
        self._runs = runs

    def find(self, run_id: str) -> Order | None:
        """Return the order of a run, or of the run that a training is part of, if there is one.

        Raises:
            ConfigError: the id cannot be that of a run, or its order cannot be read.
        """
        if (known := self._own(run_id)) is not None:
            return known
        parts = (o for o in self.list() if any(part.run_id == run_id for part in o.parts))
        return next(parts, None)

    def get(self, run_id: str) -> Order:
        """Return the order of a run.

        Raises:
            RecordNotFound: there is none.
        """
        order = self.find(run_id)
        if order is None:
            raise RecordNotFound(
                f"{self._runs} holds no run {run_id!r} that could be resumed; `slm runs list` "
                "names the runs."
            )
        return order

    def list(self) -> list[Order]:
        """Return every order that can be read, oldest first; others are logged.

        A newer version may have written one, and it must not hide the rest.
        """
        found: list[Order] = []
        for file in self._runs.glob("*/order.json"):
            try:
                found.append(_read(file))
            except (OSError, ConfigError) as error:
                log.warning("order not readable path=%s: %s", file, type(error).__name__)
        return sorted(found, key=lambda order: (order.created_at, order.run_id))

    def resumable(self) -> list[Order]:
        """Return the runs that crashed or were interrupted, and are at rest; oldest first."""
        unfinished = {RunState.RUNNING, RunState.INTERRUPTED}
        return [o for o in self.list() if o.state in unfinished and not self.at_work(o.run_id)]

    def newest_resumable(self) -> Order:
        """Return the newest run that crashed or was interrupted.

        Raises:
            RecordNotFound: there is none.
        """
        found = self.resumable()
        if not found:
            raise RecordNotFound(
                "No run has crashed or was interrupted. A run that failed for a reason of its "
                "own is resumed by its id; `slm runs list` names them."
            )
        return found[-1]

    def at_work(self, run_id: str) -> bool:
        """Whether a process is carrying the order out now."""
        path = self._folder(run_id) / "order.lock"
        if not path.is_file():
            return False
        handle = os.open(path, os.O_RDWR)
        try:
            # Shared: who only looks must not look like work to another who looks.
            return not try_lock(handle, shared=True)
        finally:
            os.close(handle)

    @contextmanager
    def carry_out(self, order: Order, wait_seconds: float = _LOCK_WAIT_SECONDS) -> Iterator[None]:
        """Write the order, keep others from it while the block lasts, and note how it ended.

        Raises:
            RunBusy: another process is carrying it out, and has not ended in ``wait_seconds``.
        """
        with self.hold(order.run_id, wait_seconds):
            # A run that is resumed may have begun on another machine.
            begun = {"state": RunState.RUNNING, "why": "", "host": socket.gethostname()}
            begun |= {"needs_person": False, "cancelled": False}
            # The process before this one may have noted a stop after ``order`` was read.
            if (known := self._own(order.run_id)) is not None:
                begun["stops"] = known.stops
            self.write(order.model_copy(update=begun))
            try:
                yield
            except BaseException as error:
                person = isinstance(error, SlmError) and not error.retryable
                ended = {"state": state_after(error), "needs_person": person}
                self.note(order.run_id, why=_name_of(error), **ended)
                raise
            self.note(order.run_id, state=RunState.COMPLETED)

    def note(self, run_id: str, **changes: object) -> Order:
        """Change fields of a run's order on disk; return it."""
        order = self.get(run_id).model_copy(update=changes)
        self.write(order)
        return order

    def write(self, order: Order) -> None:
        """Put an order on disk, whole or not at all."""
        path = self._path(order.run_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, order.model_dump(mode="json"))

    @contextmanager
    def hold(self, run_id: str, wait_seconds: float = _LOCK_WAIT_SECONDS) -> Iterator[None]:
        """Keep others from a run while the block lasts.

        Raises:
            RunBusy: another process is at work on it, and has not ended in ``wait_seconds``.
        """
        folder = self._folder(run_id)
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / "order.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not lock_within(handle, wait_seconds):
                raise RunBusy(f"Run {run_id} is at work; wait for it, or cancel it first.")
            yield
        finally:
            os.close(handle)

    def _own(self, run_id: str) -> Order | None:
        path = self._path(run_id)
        return _read(path) if path.is_file() else None

    def _path(self, run_id: str) -> Path:
        return self._folder(run_id) / "order.json"

    def _folder(self, run_id: str) -> Path:
        if not _RUN_ID.fullmatch(run_id):
            raise ConfigError(
                f"{run_id!r} is no run id: letters, digits, '.', '_' and '-', not at the start."
            )
        return self._runs / run_id


def _read(path: Path) -> Order:
    try:
        return Order.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ConfigError(
            f"{path} is no order that this version can read; a newer one may have written it, and "
            f"can go on with the run. {error.error_count()} problems: {error.errors()[0]['msg']}"
        ) from error


def _name_of(error: BaseException) -> str:
    said = error.message if isinstance(error, SlmError) else ""
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
