"""What a run's order says of stops, and what an order that cannot be read keeps waiting."""

from __future__ import annotations

import signal
from collections.abc import Callable
from datetime import timedelta

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import TerminationSignal
from prefect.states import Cancelled, Crashed, Running

from slm_core.records import RunState
from slm_core.store import Store
from slm_core.testing.training_runs import make_order
from slm_core.training.orders import Order
from tasks._wiring import current_settings, order_book
from tasks.resuming import (
    MAX_ATTEMPTS,
    find_run,
    go_on,
    is_gone_for_good,
    noting_stops,
    overdue_runs,
)

MakeRun = Callable[..., FlowRun]
Later = Callable[[timedelta], None]

pytestmark = pytest.mark.integration


def ordered(run: FlowRun) -> Order:
    order = make_order(str(run.id))
    order_book().write(order)
    return order


def stopped(order: Order) -> None:
    """Let a signal end the process that carries the order out."""
    with (
        pytest.raises(TerminationSignal),
        order_book().carry_out(order),
        noting_stops(order),
    ):
        raise TerminationSignal(signal=signal.SIGTERM)


def test_a_stop_counts_though_the_next_process_had_read_the_order_before_it(
    store: Store, make_run: MakeRun
) -> None:
    run = make_run(Running(), Crashed())
    order = ordered(run)
    stopped(order)
    with order_book().carry_out(order):  # as it was read before the stop
        assert order_book().get(str(run.id)).stops == 1
        assert order_book().get(str(run.id)).state is RunState.RUNNING


def test_an_order_that_cannot_be_read_keeps_no_other_run_waiting(
    store: Store, make_run: MakeRun, later: Later
) -> None:
    newer, dead = (make_run(Running(), Crashed()) for _ in range(2))
    for run in (newer, dead):
        ordered(run)
    file = current_settings().home / "runs" / str(newer.id) / "order.json"
    file.write_text(file.read_text().replace("{", '{"of_a_newer_version": 1,', 1))
    later(timedelta(minutes=5))
    assert str(dead.id) in [found.run_id for found in overdue_runs()]
    assert not is_gone_for_good(str(newer.id))


def test_the_stops_of_its_worker_are_no_attempts_of_a_run(store: Store, make_run: MakeRun) -> None:
    run = make_run(Running(), Crashed(), retries=MAX_ATTEMPTS - 1)
    order = ordered(run)
    stopped(order)
    assert not is_gone_for_good(str(run.id))
    assert "attempt 3 of 3" in go_on(find_run(str(run.id)))
    cancelled = make_run(Running(), Cancelled())
    stopped(ordered(cancelled))
    noted = order_book().get(str(cancelled.id))
    assert (noted.cancelled, noted.stops) == (True, 0)
