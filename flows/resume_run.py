"""Flow ``resume``: go on with a run that crashed or was stopped, from its last checkpoint.

A run that a worker can begin again is retried, as by the button *Retry*: its own flow run goes
on, so that history, claim and run folder stay one. Another one (begun in a terminal, or under
another Prefect server) goes on inside of this run, by what its folder says that it was told.
Refused: a run that is at work, one that may still be at work on another machine, and one that
was begun too often.
"""

from __future__ import annotations

import logging
from typing import Any

from prefect import State, flow
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.retrain_student import retrain_student
from flows.train_adapter import train_from_preset
from slm_core.errors import RunBusy
from slm_core.records import Adapter
from slm_core.report import ReportInput
from slm_core.training.base_model import wants_gpus
from slm_core.training.orders import Order
from slm_core.training.spec import TrainingSpec
from tasks import _flow_runs
from tasks._artifacts import showing
from tasks._wiring import order_book
from tasks.resuming import MAX_ATTEMPTS, find_run, go_on, refuse_if_at_work

log = logging.getLogger(__name__)


@flow(name="resume")
def resume_run(
    run_id: str | None = None, max_attempts: int = MAX_ATTEMPTS, host_is_dead: bool = False
) -> State[Any] | list[Adapter] | ReportInput:
    """Go on with a training or a retraining.

    Args:
        run_id: which run, by its own id or its flow run's; empty takes the newest that crashed or
            was interrupted.
        max_attempts: a run that was begun so often is given up; when its worker was stopped, that
            does not count.
        host_is_dead: the machine that the run began on is gone for good.
    """
    found = find_run(run_id)
    if found.can_be_retried:
        done = go_on(found, max_attempts=max_attempts, host_is_dead=host_is_dead)
        with showing("resumed"):
            create_markdown_artifact(done, key="resumed")
        return Completed(message=done)
    refuse_if_at_work(found, None, host_is_dead=host_is_dead)
    order = order_book().get(found.run_id)
    _refuse_beside_another(order)
    _bury_old_run(order)
    with showing("resumed"):
        create_markdown_artifact(
            f"Going on with {order.flow} run `{order.run_id}` of "
            f"{order.created_at:%Y-%m-%d %H:%M} UTC, which was *{order.state}*. {order.why}",
            key="resumed",
        )
    if order.flow == "train":
        return train_from_preset(run_id=order.run_id)
    return retrain_student(
        claim_id=order.claim_id, run_id=order.run_id, reason=order.reason or "resumed"
    )


def _refuse_beside_another(order: Order) -> None:
    """Refuse two trainings on the same GPUs: here no queue keeps them apart."""
    book = order_book()
    at_work = [other.run_id for other in book.list() if book.at_work(other.run_id)]
    if at_work and wants_gpus(TrainingSpec.model_validate(order.spec["training"])):
        raise RunBusy(
            f"Run {at_work[0]} is at work on this machine's GPUs. Resume {order.run_id} when it "
            "is done, or cancel it first."
        )


def _bury_old_run(order: Order) -> None:
    """Let Prefect know that the flow run that last took the order up is dead."""
    if order.flow_run_id == str(flow_run.id):
        return
    try:
        old = _flow_runs.find(order.flow_run_id)
        if old is not None and old.state is not None and old.state.is_running():
            _flow_runs.bury(old, "Its process is gone; resumed by another run.")
    except Exception as error:
        # It only looks alive in the dashboard; that must not keep the training waiting.
        log.warning("old run not marked id=%s error=%s", order.flow_run_id, type(error).__name__)


if __name__ == "__main__":
    resume_run()
