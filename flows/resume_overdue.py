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

from slm_core.errors import SlmError
from tasks._artifacts import showing
from tasks.resuming import bury_silent_runs, go_on, overdue_runs

log = logging.getLogger(__name__)


@flow(name="resume-overdue")
def resume_overdue() -> State[Any]:
    """Retry the trainings that crashed some minutes ago and lie still; give up the hopeless.

    Runs of any flow that fell silent are marked first: they would keep their place for good.
    """
    outcomes = [{"run": name, "outcome": "marked Crashed"} for name in bury_silent_runs()]
    found = overdue_runs()
    for one in found:
        try:
            outcome = go_on(one)
        except SlmError as error:
            # One that cannot go on must not keep the others waiting.
            outcome = error.message
            log.warning("overdue run left alone id=%s: %s", one.run_id, outcome)
        outcomes.append({"run": one.run_id, "outcome": outcome})
    if not outcomes:
        return Completed(message="No dead run lies about.")
    with showing("overdue"):
        create_table_artifact(outcomes, key="overdue", description="Dead runs, and what was done")
    return Completed(message=f"{len(outcomes)} dead runs found; see the table.")


if __name__ == "__main__":
    resume_overdue()
