"""Flow ``status``: what is live, what runs, how the nights went, and what needs a person.

It changes nothing. It ends *AllWell* or *NeedsPerson*, leaves the page ``SLM_HOME/status.html``
for a browser and the file ``status.json`` for ``slm status``, and tells of what stands for an hour.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from prefect import State, flow
from prefect.states import Completed

from slm_core.status import Concern, Status, concerns, headline
from tasks._events import announce
from tasks.status import ask_prefect, gather_status, show_in_dashboard

TOLD_AFTER = timedelta(hours=1)
"""What has an event of its own was told when it came; it is told again if it stands."""


@flow(name="status")
def show_status() -> State[Any]:
    """Show the state of the whole service as an artifact and as a page."""
    status = gather_status(ask_prefect())
    show_in_dashboard(status)
    found = concerns(status)
    for one in _to_be_told(status, found):
        announce(
            "slm.status.needs-person", f"slm.concern.{one.key}", why=one.why, runbook=one.runbook
        )
    reasons = " ".join(one.why for one in found)
    return Completed(
        name="NeedsPerson" if found else "AllWell", message=f"{headline(found)}. {reasons}".strip()
    )


def _to_be_told(status: Status, found: tuple[Concern, ...]) -> list[Concern]:
    return [one for one in found if one.since is None or status.at - one.since >= TOLD_AFTER]


if __name__ == "__main__":
    show_status()
