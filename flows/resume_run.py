"""Flow ``resume``: go on with a run that crashed or was stopped, from its last checkpoint.

It goes by what the run was told, which lies in the run's folder, and does the same as Retry in
the dashboard. What it refuses: a run that is at work, and one that began on another machine
and may still be at work there.
"""

from __future__ import annotations

import logging
import socket
from uuid import UUID

from prefect import State, flow, get_client
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run
from prefect.states import Crashed

from flows.retrain_student import retrain_student
from flows.train_adapter import train_from_preset
from slm_core.errors import RunBusy
from slm_core.records import Adapter, RunState
from slm_core.report import ReportInput
from slm_core.training.base_model import wants_gpus
from slm_core.training.orders import Order, OrderBook
from slm_core.training.spec import TrainingSpec
from tasks._wiring import order_book

log = logging.getLogger(__name__)


@flow(name="resume")
def resume_run(
    run_id: str | None = None, host_is_dead: bool = False
) -> list[Adapter] | ReportInput | State:
    """Go on with a training or a retraining.

    Args:
        run_id: which run; empty takes the newest that crashed or was interrupted.
        host_is_dead: the machine that the run began on is gone for good.
    """
    book = order_book()
    order = book.get(run_id) if run_id else book.newest_resumable()
    _refuse_if_at_work(book, order, host_is_dead=host_is_dead)
    _declare_dead(order)
    create_markdown_artifact(
        f"Going on with {order.flow} run `{order.run_id}` of {order.created_at:%Y-%m-%d %H:%M} "
        f"UTC, which was *{order.state}*. {order.why}",
        key="resumed",
    )
    if order.flow == "train":
        return train_from_preset(run_id=order.run_id)
    return retrain_student(
        claim_id=order.claim_id, run_id=order.run_id, reason=order.reason or "resumed"
    )


def _refuse_if_at_work(book: OrderBook, order: Order, *, host_is_dead: bool) -> None:
    """Refuse what would train the same thing twice, or two things on the same GPUs."""
    at_work = [other.run_id for other in book.list() if book.at_work(other.run_id)]
    if order.run_id in at_work:
        raise RunBusy(f"Run {order.run_id} is at work; wait for it, or cancel it first.")
    if at_work and wants_gpus(TrainingSpec.model_validate(order.spec["training"])):
        raise RunBusy(
            f"Run {at_work[0]} is at work on this machine's GPUs. Resume {order.run_id} when it "
            "is done, or cancel it first."
        )
    elsewhere = order.host != socket.gethostname() and order.state is RunState.RUNNING
    if elsewhere and not host_is_dead:
        raise RunBusy(
            f"Run {order.run_id} began on {order.host} and was never reported to have ended. If "
            "that machine is gone, resume with host_is_dead=true.",
            host=order.host,
        )


def _declare_dead(order: Order) -> None:
    """Let Prefect know that the old flow run is dead.

    One left *Running* for good would keep its place in the queue, and nothing else would start.
    """
    if order.flow_run_id is None or order.flow_run_id == str(flow_run.id):
        return
    try:
        with get_client(sync_client=True) as client:
            old = client.read_flow_run(UUID(order.flow_run_id))
            if old.state is not None and old.state.is_running():
                dead = Crashed(message="Its process is gone; resumed by another run.")
                client.set_flow_run_state(old.id, dead, force=True)
    except Exception as error:
        # An old run that this server never knew, or forgot, needs no burial.
        log.warning("old run not marked id=%s error=%s", order.flow_run_id, type(error).__name__)


if __name__ == "__main__":
    resume_run()
