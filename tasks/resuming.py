"""Which runs may be gone on with, by whom, and when to give one up.

A run is gone on with by its own flow run (``_flow_runs.retry``). It is left alone while a
process works on it, while another machine may, and once it was begun ``MAX_ATTEMPTS`` times,
those not counted that ended because its worker was stopped: then its claim goes back to the
pool, for the next night.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import TerminationSignal

from slm_core.errors import ConfigError, RecordNotFound, RecoveryExhausted, RunBusy
from slm_core.records import ClaimState, RunState
from slm_core.training.orders import Order
from tasks import _flow_runs
from tasks._events import announce
from tasks._wiring import opened_store, order_book

if TYPE_CHECKING:
    from slm_core.records import Claim
    from slm_core.store import Store

log = logging.getLogger(__name__)

RESUMED = ("train", "retrain")
"""Flows whose crashed runs are gone on with, without being asked."""
WATCHED = (
    *RESUMED,
    "eval",
    "compare",
    "check-gpus",
    "ingest",
    "resume",
    "resume-overdue",
    "settle",
    "status",
)
"""Flows whose silent runs the server marks Crashed. None of them ever waits for a person."""
_BURIED = (*WATCHED, "promote")
"""Flows whose dead runs are looked for here: a run that waits for a person is Paused, not dead."""
MAX_ATTEMPTS = 3
"""Of one flow run, the first one included."""
SILENT_SECONDS = 90
"""Without a sign of life for so long, a running process counts as dead."""
PENDING_SECONDS = 300
"""The same for one that is about to begin: a container's image may have to be fetched first."""
STOPPING_SECONDS = 45.0
"""A process that was asked to stop is given so long to save and leave."""
RESUME_WITHIN = timedelta(days=1)
"""Nobody goes on with a run that ended longer ago, unless a person asks for it."""
_OVERDUE_SECONDS = 120.0
"""The automation that resumes crashed runs has done so by then, or missed it."""
_SECOND_LOOK_SECONDS = 45.0
"""A server that was away gets the heartbeats of what lives by then."""
_AT_WORK = frozenset({StateType.RUNNING, StateType.PENDING, StateType.CANCELLING})


class Found(NamedTuple):
    """A run: what it was told, and what Prefect knows of it. At least one of both is there."""

    run_id: str
    order: Order | None
    """None when it died before it wrote one."""
    flow_run: FlowRun | None
    """None when this Prefect server does not know it."""

    @property
    def can_be_retried(self) -> bool:
        """Whether a worker can begin the flow run again: it needs a deployment."""
        run = self.flow_run
        return (
            run is not None and run.deployment_id is not None and _flow_runs.flow_of(run) in RESUMED
        )


def find_run(run_id: str | None) -> Found:
    """Return the run of that id, or of that flow-run id; without one the newest that crashed.

    Raises:
        RecordNotFound: there is none.
    """
    book = order_book()
    if run_id is None:
        order = book.newest_resumable()
    else:
        order = book.find(run_id) or next(
            (one for one in book.list() if one.flow_run_id == run_id), None
        )
    if order is not None:
        return Found(order.run_id, order, _flow_runs.find(order.flow_run_id))
    flow_run = _flow_runs.find(run_id)
    if flow_run is None or _flow_runs.flow_of(flow_run) not in RESUMED:
        raise RecordNotFound(
            f"Neither the run folders nor Prefect know a training {run_id!r}; `slm runs list` "
            "names the runs."
        )
    return Found(str(flow_run.id), None, flow_run)


def go_on(found: Found, *, max_attempts: int = MAX_ATTEMPTS, host_is_dead: bool = False) -> str:
    """Let a worker go on with a run that can be retried; return what was done.

    Raises:
        RunBusy: a process is at work on it, or may be.
        RecoveryExhausted: it has been begun ``max_attempts`` times; it was given up.
    """
    run = found.flow_run
    if run is None:
        raise ValueError("only a run that Prefect knows can be retried")
    state = _flow_runs.state_of(run)
    if state is StateType.COMPLETED:
        return f"Run {found.run_id} is done."
    if state in (StateType.SCHEDULED, StateType.PAUSED):
        return f"Run {found.run_id} waits to begin already."
    refuse_if_at_work(found, state, host_is_dead=host_is_dead)
    if _has_moved_on(run):
        return f"Run {found.run_id} was {state.value.lower()} and has moved on meanwhile."
    begun = _attempts(found.order, run)
    if begun >= max_attempts:
        give_up(found, begun)
        raise RecoveryExhausted(
            f"Run {found.run_id} was begun {begun} times and has not come to its end; its claim, "
            "if it had one, is free for the next night. Read `slm runs show`, mend the cause, "
            f"then resume it with max_attempts={begun + 1}.",
            max_attempts=max_attempts,
        )
    if state not in _flow_runs.ENDED:
        _flow_runs.bury(run, "Its process is gone; it is gone on with.")
    _flow_runs.retry(run)
    log.info("run retried id=%s attempt=%d of=%d", found.run_id, begun + 1, max_attempts)
    return f"Run {found.run_id} begins again, attempt {begun + 1} of {max_attempts}."


def refuse_if_at_work(found: Found, state: StateType | None, *, host_is_dead: bool) -> None:
    """Refuse what would train the same thing twice.

    Raises:
        RunBusy: a process is at work on it, or may be.
    """
    order, run = found.order, found.flow_run
    if order is not None:
        _wait_for_its_end(order.run_id, STOPPING_SECONDS if state in _flow_runs.ENDED else 0.0)
    unsettled = order is not None and order.state is RunState.RUNNING
    if host_is_dead or not (state in _AT_WORK or (state is None and unsettled)):
        return
    if order is not None and order.host != socket.gethostname():
        raise RunBusy(
            f"Run {order.run_id} began on {order.host} and was never reported to have ended. If "
            "that machine is gone, resume with host_is_dead=true.",
            host=order.host,
        )
    if run is None or state is None:
        return
    seconds = _flow_runs.seconds_in_state(run)
    if seconds < _longest_silence(state):
        raise RunBusy(
            f"Run {found.run_id} has been {state.value.lower()} for {seconds:.0f} s, and its "
            f"process may be about to begin. Try again after {_longest_silence(state)} s, or "
            "with host_is_dead=true.",
        )


def give_up(found: Found, begun: int) -> None:
    """Free a run's claim and say that it failed for good. Giving up twice is no error."""
    order = found.order
    if order is not None and order.state is RunState.FAILED:
        return
    with opened_store() as store:
        for claim in _claims_of(store, found.run_id):
            store.claims.release(claim.id, found.run_id)
    announce(
        "slm.training.failed",
        f"slm.run.{found.run_id}",
        run_id=found.run_id,
        attempts=begun,
        why=order.why if order else "",
    )
    # Last: killed before, this is done again; nothing looks at a failed run any more.
    if order is not None:
        order_book().note(order.run_id, state=RunState.FAILED, why=f"given up after {begun} tries")


@contextmanager
def noting_stops(order: Order) -> Iterator[None]:
    """Note in a run's order if a signal ends the block; to be entered while it is carried out.

    Afterwards another process may be at work on it already.
    """
    try:
        yield
    except TerminationSignal:
        book = order_book()
        cancelled = is_cancelled(order)
        stops = book.get(order.run_id).stops
        book.note(order.run_id, **({"cancelled": True} if cancelled else {"stops": stops + 1}))
        raise


def is_cancelled(order: Order) -> bool:
    """Whether a person cancelled a run, as Prefect knows it now."""
    return _flow_runs.is_cancelled(order.flow_run_id)


def overdue_runs() -> list[Found]:
    """Return the dead trainings that should have been gone on with by now, oldest first."""
    book = order_book()
    due: list[tuple[float, Found]] = []
    states = (StateType.CRASHED, StateType.FAILED, StateType.RUNNING, StateType.PENDING)
    for run in _flow_runs.recent(RESUMED, states, RESUME_WITHIN):
        state, seconds = _flow_runs.state_of(run), _flow_runs.seconds_in_state(run)
        try:
            found = find_run(str(run.id))
        except ConfigError as error:  # one must not keep the others waiting
            log.warning("run left alone id=%s: %s", run.id, error.message)
            continue
        order = found.order
        given_up = order is not None and order.state is RunState.FAILED
        if given_up or found.flow_run is None or found.flow_run.id != run.id:
            continue
        if order is not None and book.at_work(order.run_id):
            continue
        if state is StateType.RUNNING and not _died_here(order):
            continue  # only its own machine can tell that its process is gone
        if state is StateType.FAILED and (order is None or order.needs_person):
            continue
        if order is None and _was_given_up(run):
            continue
        if state in _AT_WORK:
            seconds -= _longest_silence(state)
        if seconds > _OVERDUE_SECONDS:
            due.append((seconds, found))
    return [found for _, found in sorted(due, key=lambda one: one[0], reverse=True)]


def bury_silent_runs() -> list[str]:
    """Mark runs Crashed that fell silent and that the automation missed; return their names.

    They would hold their place in the pool for good. Trainings are then overdue as any other.
    """
    silent = _silent_runs()
    if not silent:
        return []
    time.sleep(_SECOND_LOOK_SECONDS)
    still = {run.id for run in _silent_runs()}
    dead = [run for run in silent if run.id in still]
    for run in dead:
        _flow_runs.bury(run, f"no sign of life for more than {_silence_allowed(run):.0f} s")
        log.warning("silent run marked crashed id=%s", run.id)
    return [run.name for run in dead]


def _silent_runs() -> list[FlowRun]:
    """Return the runs shown at work that have fallen silent, and not just now.

    By heartbeats and not by process: a worker in a container sees no process of another's.
    """
    book = order_book()
    alive = {order.flow_run_id for order in book.list() if book.at_work(order.run_id)}
    silent: list[FlowRun] = []
    at_work = (StateType.RUNNING, StateType.PENDING)
    for run in _flow_runs.recent(_BURIED, at_work, RESUME_WITHIN):
        if str(run.id) in alive:
            continue
        if _flow_runs.state_of(run) is StateType.PENDING:
            seconds = _flow_runs.seconds_in_state(run)
        else:
            # Without any heartbeat nothing is known: whoever began it may have switched them off.
            seconds = _flow_runs.seconds_since_heartbeat(run)
        if seconds is not None and seconds > _silence_allowed(run) + _OVERDUE_SECONDS:
            silent.append(run)
    return silent


def _silence_allowed(run: FlowRun) -> int:
    return _longest_silence(_flow_runs.state_of(run))


def is_gone_for_good(owner: str) -> bool:
    """Whether the run that holds a claim will never go on, so that another may take it.

    Never of a run that is at work or about to be resumed. False of one that this server does
    not know, unless it failed, or whose order cannot be read: only a person can tell.
    """
    book = order_book()
    try:
        order = book.find(owner)
    except ConfigError as error:
        log.warning("claim left to its owner run=%s: %s", owner, error.message)
        return False
    if order is not None and book.at_work(order.run_id):
        return False
    run = _flow_runs.find(order.flow_run_id if order else owner)
    failed = order is not None and order.state is RunState.FAILED
    if run is None:
        return failed
    state = _flow_runs.state_of(run)
    if state in (StateType.CANCELLED, StateType.COMPLETED):
        return True
    if state not in _flow_runs.ENDED:
        return False
    if failed or _flow_runs.seconds_in_state(run) > RESUME_WITHIN.total_seconds():
        return True
    return _attempts(order, run) >= MAX_ATTEMPTS


def _attempts(order: Order | None, run: FlowRun) -> int:
    """Return how often a run was begun, without the times when its worker was stopped."""
    return _flow_runs.attempts(run) - (order.stops if order is not None else 0)


def _has_moved_on(run: FlowRun) -> bool:
    """Whether a run has left the state that it was read in: somebody else acts on it."""
    now = _flow_runs.find(str(run.id))
    seen = run.state.id if run.state else None
    return now is None or (now.state.id if now.state else None) != seen


def _was_given_up(run: FlowRun) -> bool:
    """Whether a run without an order is out of attempts, and holds no claim any more."""
    if _flow_runs.attempts(run) < MAX_ATTEMPTS:
        return False
    with opened_store() as store:
        return not _claims_of(store, str(run.id))


def _claims_of(store: Store, run_id: str) -> list[Claim]:
    return [claim for claim in store.claims.list(ClaimState.RUNNING) if claim.owner == run_id]


def _died_here(order: Order | None) -> bool:
    """Whether the process of an order that nobody carries out now died on this machine."""
    return (
        order is not None and order.state is RunState.RUNNING and order.host == socket.gethostname()
    )


def _longest_silence(state: StateType) -> int:
    return PENDING_SECONDS if state is StateType.PENDING else SILENT_SECONDS


def _wait_for_its_end(run_id: str, seconds: float) -> None:
    """Return once no process of this machine works on the run: it may be saving and leaving."""
    deadline = time.monotonic() + seconds
    while order_book().at_work(run_id):
        if time.monotonic() >= deadline:
            raise RunBusy(f"Run {run_id} is at work; wait for it, or cancel it first.")
        time.sleep(0.5)
