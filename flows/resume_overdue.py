"""Flow ``resume-overdue``: go on with every dead training that the automations missed.

Events are best effort: a server that is killed just then loses them. This looks at what is,
every few minutes, and goes on with what lies there.
"""

from __future__ import annotations

import logging
from typing import Any

from prefect import State, flow
from prefect.artifacts import create_table_artifact
from prefect.states import Completed

from slm_core.errors import TrainingError
from tasks.resuming import go_on, overdue_runs

log = logging.getLogger(__name__)


@flow(name="resume-overdue")
def resume_overdue() -> State[Any]:
    """Retry the trainings that crashed some minutes ago and lie still; give up the hopeless."""
    found = overdue_runs()
    outcomes: list[dict[str, str]] = []
    for one in found:
        try:
            outcome = go_on(one)
        except TrainingError as error:
            # One that cannot go on must not keep the others waiting.
            outcome = error.message
            log.warning("overdue run left alone id=%s: %s", one.run_id, outcome)
        outcomes.append({"run": one.run_id, "outcome": outcome})
    if not outcomes:
        return Completed(message="No dead training lies about.")
    create_table_artifact(outcomes, key="overdue", description="Dead trainings, and what was done")
    return Completed(message=f"{len(outcomes)} dead trainings found; see the table.")


if __name__ == "__main__":
    resume_overdue()
