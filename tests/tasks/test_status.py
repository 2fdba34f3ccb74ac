"""What the status asks of a real Prefect server."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

import pytest
from prefect import flow, get_client
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed, Failed

from slm_core.settings import Settings
from slm_core.status import Operations
from slm_core.store import Store
from tasks.status import ask_prefect, gather_status


@flow(name="settle")
def settle() -> None: ...


@pytest.fixture
def deployment(prefect_server: None) -> Iterator[UUID]:
    """The deployment ``settle/routes``; gone afterwards, for the server is that of other tests."""
    with get_client(sync_client=True) as client:
        found = client.create_deployment(client.create_flow(settle), name="routes")
        yield found
        client.delete_deployment(found)


def ended(deployment: UUID, *states: State) -> None:
    with get_client(sync_client=True) as client:
        for state in states:
            run = client.create_flow_run_from_deployment(deployment)
            client.set_flow_run_state(run.id, state, force=True)


def test_red_runs_in_a_row_are_counted_from_the_newest(deployment: UUID) -> None:
    assert ask_prefect.fn().routines == ()
    ended(deployment, Failed(), Completed(), Failed(), Cancelled(), Failed(message="no store"))
    (routine,) = ask_prefect.fn().routines
    assert (routine.deployment, routine.red) == ("settle/routes", 2)
    assert (routine.outcome, routine.message) == ("Failed", "no store")
    ended(deployment, Completed())
    (routine,) = ask_prefect.fn().routines
    assert routine.red == 0


def test_a_page_that_cannot_be_written_keeps_nobody_from_the_status(
    settings: Settings, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    page = settings.home / "status.html"
    (page / "in the way").mkdir(parents=True)
    assert gather_status.fn(Operations()).host
    assert f"status not written home={settings.home}" in caplog.text
