"""Run the ranks of one attempt, notice when one dies, hangs or loses its GPU, leave none behind.

Whatever makes the caller leave (a signal, Ctrl-C, a failing callback) reaches the workers
as SIGTERM: they save a checkpoint at the next step and end. A caller that is killed takes
them along: the kernel sees to it (``worker.py`` asks for that). No wait is without bound: a
process that the driver keeps from dying is reported and left to the kernel.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import NamedTuple, Never

from slm_core.records import Fault
from slm_core.training.doctor import Doctor
from slm_core.training.events import EventFile, StepEvent
from slm_core.training.faults import ExitCode
from slm_core.training.heartbeat import FLOOR_SECONDS
from slm_core.training.plan import Plan
from slm_core.training.ranks import Rank, start_rank
from slm_core.training.run_folder import RunFolder

log = logging.getLogger(__name__)


class Limits(NamedTuple):
    """How long the parent waits for what."""

    poll_seconds: float = 0.05
    hang_floor_seconds: Mapping[str, float] = FLOOR_SECONDS
    """By phase of the worker, see ``heartbeat.py``."""
    stop_grace_seconds: float = 10.0
    """From SIGTERM to SIGKILL. A GPU shall be free within 15 seconds of a cancellation, and it
    takes a worker some seconds to learn of one. Prefect itself would wait for 30."""
    hung_grace_seconds: float = 3.0
    """The same for a worker that hangs."""
    settle_seconds: float = 0.5
    """From one rank's death to the end of the others: time to say why they die as well."""
    stack_seconds: float = 0.5
    """Before that: time to write down its stack."""
    kill_seconds: float = 10.0
    """From SIGKILL to giving a process up."""


DEFAULT_LIMITS = Limits()


class Ended(NamedTuple):
    """How an attempt ended."""

    codes: Mapping[int, int]
    """Rank to exit code, in order of death, of those that ended by themselves."""
    last_step: int
    """Last finished step of which a sign of life told."""
    hung_rank: int | None = None
    phase: str = ""
    """What the rank that hangs was doing."""
    alarm: Fault | None = None
    """What the doctor found while they ran."""
    silent_seconds: float = 0.0
    """From the last sign of life of the rank that failed to the moment it was noticed."""
    unkillable: tuple[int, ...] = ()
    """Ids of processes that outlived SIGKILL."""


def run_ranks(
    run: RunFolder,
    plan: Plan,
    lock: int,
    events: EventFile,
    on_event: Callable[[StepEvent], None],
    *,
    doctor: Doctor | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Ended:
    """Start the plan's ranks, pass on their events, and return how they ended.

    On any exception, ``on_event``'s own included, they are asked to stop, waited for, and
    killed if need be; then the exception goes on.
    """
    with ExitStack() as stack:
        if doctor is not None:
            stack.enter_context(doctor.watch(plan.gpus))
        output = stack.enter_context(run.log.open("ab"))
        stack.enter_context(_sigterm_unwinds())
        ranks: list[Rank] = []
        try:
            for number in range(plan.world_size):
                floors = limits.hang_floor_seconds
                ranks.append(start_rank(run, plan, number, output, lock, floors))
            return _watch(ranks, events, on_event, doctor, limits)
        finally:
            _stop(ranks, limits)


def _watch(
    ranks: list[Rank],
    events: EventFile,
    on_event: Callable[[StepEvent], None],
    doctor: Doctor | None,
    limits: Limits,
) -> Ended:
    """Return when all ranks are done, or one has failed and the others are gone as well."""
    codes: dict[int, int] = {}
    ended = Ended(codes, 0)
    failed_at: float | None = None
    while True:
        time.sleep(limits.poll_seconds)
        now = time.monotonic()
        hung = [rank for rank in ranks if rank.number not in codes and rank.hangs(now)]
        for rank in ranks:
            code = rank.exit_code()
            if code is not None and rank.number not in codes:
                codes[rank.number] = code
                if code != ExitCode.DONE and failed_at is None:
                    failed_at = now
                    ended = ended._replace(silent_seconds=rank.watch.silence(now))
        beats = (rank.watch.last.step for rank in ranks if rank.watch.last is not None)
        ended = ended._replace(last_step=max(beats, default=0))
        for event in events.read_new():
            on_event(event)
        living = [rank for rank in ranks if rank.number not in codes]
        if not living:
            return ended
        if ExitCode.INTERRUPTED in codes.values():
            # One rank was asked to stop; the others must as well, and may save first.
            unkillable = _stop(living, limits)
            for rank in living:
                code = rank.exit_code()
                # What a rank says of itself counts. Death by our SIGKILL, or because its peer
                # is gone, does not: it would pass for a fault after which training goes on.
                if code is not None and code in tuple(ExitCode):
                    codes[rank.number] = code
            return ended._replace(unkillable=unkillable)
        if failed_at is not None:
            if now - failed_at < limits.settle_seconds:
                continue
            return ended._replace(unkillable=_kill(living, limits))
        alarm = doctor.alarm() if doctor is not None else None
        if alarm is not None:
            # Not asked to save: that would copy from a device that is in trouble.
            log.error("GPU alarm kind=%s: %s", alarm.kind, alarm.message)
            silent = max(rank.watch.silence(now) for rank in living)
            killed = _kill(living, limits)
            return ended._replace(alarm=alarm, silent_seconds=silent, unkillable=killed)
        stuck = [rank for rank in living if rank in hung and not _waits(rank, living)]
        if stuck:
            rank = max(stuck, key=lambda rank: rank.watch.silence(now))
            ended = ended._replace(
                hung_rank=rank.number,
                phase=rank.watch.phase,
                silent_seconds=rank.watch.silence(now),
            )
            log.error(
                "training worker hangs rank=%d phase=%s silent_seconds=%.1f limit_seconds=%.1f",
                rank.number,
                ended.phase,
                ended.silent_seconds,
                rank.watch.limit_seconds,
            )
            return ended._replace(unkillable=_end_hung(living, limits))


def _waits(rank: Rank, living: list[Rank]) -> bool:
    """Return whether ``rank`` may only be waiting, in its step, for what another one does.

    One that compiles or saves has more time, and is itself watched meanwhile.
    """
    others = (other.watch.phase for other in living if other is not rank)
    return rank.watch.phase == "train" and any(phase in ("probe", "save") for phase in others)


def _end_hung(ranks: list[Rank], limits: Limits) -> tuple[int, ...]:
    """End ranks of which one hangs; first let each write down where it is."""
    for number, seconds in (
        (signal.SIGUSR1, limits.stack_seconds),
        (signal.SIGTERM, limits.hung_grace_seconds),
    ):
        for rank in ranks:
            rank.send(number)
        _wait(ranks, seconds, limits)
    return _kill(ranks, limits)


def _stop(ranks: list[Rank], limits: Limits) -> tuple[int, ...]:
    """Ask living ranks to save and end; kill those that do not."""
    living = [rank for rank in ranks if not rank.given_up and rank.exit_code() is None]
    if not living:
        return ()
    for rank in living:
        log.info("training worker asked to stop rank=%d pid=%d", rank.number, rank.process.pid)
        rank.send(signal.SIGTERM)
    try:
        _wait(living, limits.stop_grace_seconds, limits)
    finally:
        unkillable = _kill(living, limits)
    return unkillable


def _kill(ranks: list[Rank], limits: Limits) -> tuple[int, ...]:
    """Kill what is left of ``ranks``; return the ids of those that do not die."""
    for rank in ranks:
        if rank.exit_code() is None:
            log.warning("training worker killed rank=%d pid=%d", rank.number, rank.process.pid)
            rank.send(signal.SIGKILL)
    left = _wait(ranks, limits.kill_seconds, limits)
    for rank in left:
        rank.give_up()
        log.error("training worker cannot be killed rank=%d pid=%d", rank.number, rank.process.pid)
    return tuple(rank.process.pid for rank in left)


def _wait(ranks: list[Rank], seconds: float, limits: Limits) -> list[Rank]:
    """Return the ranks that still live when all have ended or the time is up."""
    deadline = time.monotonic() + seconds
    while True:
        living = [rank for rank in ranks if rank.exit_code() is None]
        left = deadline - time.monotonic()
        if not living or left <= 0:
            return living
        time.sleep(min(left, limits.poll_seconds))


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """Let a SIGTERM that would end this process at once unwind the stack instead.

    A handler that the caller installed, such as Prefect's, stays; so does everything when
    this is not the main thread, where Python allows no handlers.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def leave(number: int, frame: FrameType | None) -> Never:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
