"""Settings for tasks that are called outside any flow, and flow runs in any state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest
from prefect import flow, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Crashed, Running, Scheduled

from slm_core.records import utc_now
from slm_core.settings import Settings
from slm_core.store import Store, open_store
from tasks import _flow_runs, _wiring

MakeRun = Callable[..., FlowRun]
Later = Callable[[timedelta], None]


@pytest.fixture
def settings(slm_home: Path) -> Iterator[Settings]:
    """Settings of an empty service, in use for tasks."""
    settings = Settings.from_env({"SLM_HOME": str(slm_home)})
    _wiring.configure(settings)
    yield settings
    _wiring._settings.clear()


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    """The store that the tasks use."""
    with open_store(settings.database_url) as store:
        yield store


@flow(name="retrain")
def retrain() -> None: ...


@flow(name="eval")
def evaluate() -> None: ...


@flow(name="promote")
def promote() -> None: ...


@flow(name="something-else")
def something_else() -> None: ...


@pytest.fixture(scope="module")
def deployments(prefect_server: None) -> dict[str, UUID]:
    """Deployments of a training and of another flow; no worker serves them."""
    with get_client(sync_client=True) as client:
        return {
            one.name: client.create_deployment(client.create_flow(one), name="test")
            for one in (retrain, evaluate, promote, something_else)
        }


@pytest.fixture
def make_run(deployments: dict[str, UUID]) -> MakeRun:
    """Make a flow run that goes through some states."""

    def make(*states: State, retries: int = 0, of: str = "retrain") -> FlowRun:
        retried = [Running(), Crashed(), Scheduled(name="AwaitingRetry")] * retries
        with get_client(sync_client=True) as client:
            run = client.create_flow_run_from_deployment(deployments[of])
            for state in [*retried, *states]:
                client.set_flow_run_state(run.id, state, force=True)
            return client.read_flow_run(run.id)

    return make


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Later:
    """Put our clock forward; it is an hour ahead, until said otherwise."""

    def put(by: timedelta) -> None:
        monkeypatch.setattr(_flow_runs, "utc_now", lambda: utc_now() + by)

    put(timedelta(hours=1))
    return put
