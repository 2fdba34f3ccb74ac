"""What ``slm doctor`` says of a Prefect server with a fault, and how the commands ask one.

The server is a real HTTP server with answers in the form of Prefect's; that they have that form
is shown with the runbook, on a real one.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from slm_core.cli.doctor import prefect_server as checks
from slm_core.cli.prefect_client import PAGE, PrefectClient, prefect_client
from slm_core.errors import PrefectUnavailable
from slm_core.records import Health, RunState
from slm_core.settings import Settings
from slm_core.store import Store
from slm_core.testing.loopback import LoopbackHandler, LoopbackServer
from slm_core.training.orders import Order, OrderBook

RUN = "11111111-2222-4333-8444-555555555555"
LONG_AGO = "2026-01-01T00:00:00+00:00"


class FakePrefect(LoopbackServer):
    """A server that gives ``answers[path]``: JSON, or a status code; runs by their state."""

    def __init__(self) -> None:
        super().__init__(Handler)
        self.answers: dict[str, Any] = {}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.login: str | None = None
        self.url = f"{self.base_url}/api"


class Handler(LoopbackHandler):
    owner: FakePrefect

    def do_GET(self) -> None:
        self.say({})

    def do_POST(self) -> None:
        self.say(json.loads(self.body()))

    def say(self, body: dict[str, Any]) -> None:
        path = self.path.removeprefix("/api")
        self.owner.asked.append((path, body))
        found = self.owner.answers.get(path, 404)
        if path == "/flow_runs/filter":
            found = [run for run in found if is_wanted(run, body["flow_runs"]["state"])]
        if self.owner.login and self.headers["Authorization"] != self.owner.login:
            found = 401
        if isinstance(found, list) and "offset" in body:
            found = found[body["offset"] : body["offset"] + body["limit"]]
        self.answer(found if isinstance(found, int) else 200, found)


def is_wanted(run: dict[str, Any], state: dict[str, Any]) -> bool:
    """Whether a run passes Prefect's filter of states; an unknown filter is an error."""
    keys = {"type": "state_type", "name": "state_name"}
    return all(run[keys[key]] in wanted["any_"] for key, wanted in state.items())


@pytest.fixture
def prefect() -> Iterator[FakePrefect]:
    with FakePrefect() as fake:
        yield fake


@pytest.fixture
def settings(prefect: FakePrefect, tmp_path: Path) -> Settings:
    (tmp_path / "prefect.yaml").write_text(
        "deployments:\n- {name: nightly, entrypoint: 'flows/a.py:a'}\n"
    )
    given = {"SLM_HOME": str(tmp_path), "SLM_REPO": str(tmp_path), "PREFECT_API_URL": prefect.url}
    return Settings.from_env(given)


def deployment(**changes: Any) -> dict[str, Any]:
    values = {
        "id": "d-1",
        "name": "nightly",
        "entrypoint": "flows/a.py:a",
        "pull_steps": [{"directory": "{{ $SLM_REPO }}"}],
        "paused": False,
        "schedules": [{"active": True}],
        "work_pool_name": "gpu",
        "work_queue_name": "gpu",
        "created": LONG_AGO,
    }
    return values | changes


def test_a_server_of_another_version_fails(prefect: FakePrefect, settings: Settings) -> None:
    prefect.answers |= {"/admin/version": "2.0.0", "/ready": {"message": "OK"}}
    health, seen, _ = checks.api(settings)
    assert health is Health.FAIL
    assert "one version" in seen


def test_a_server_without_its_database_fails(prefect: FakePrefect, settings: Settings) -> None:
    prefect.answers["/admin/version"] = metadata.version("prefect")
    prefect.answers["/ready"] = 503
    health, seen, mend = checks.api(settings)
    assert health is Health.FAIL
    assert "its database does not" in seen
    assert "see RUNBOOK.md#prefect-down" in mend
    prefect.answers["/ready"] = {"message": "OK"}
    assert checks.api(settings).health is Health.PASS


def test_leases_in_memory_and_telemetry_warn(prefect: FakePrefect, settings: Settings) -> None:
    storage = {"lease_storage": "prefect.server.concurrency.lease_storage.memory"}
    server = {"concurrency": storage, "analytics_enabled": True}
    prefect.answers["/admin/settings"] = {"server": server}
    assert checks.server_settings(settings).health is Health.WARN
    seen = checks.telemetry(settings).seen
    assert "the server" in seen
    assert "this shell" in seen


def test_deployments_that_are_missing_baked_or_paused_are_named(
    prefect: FakePrefect, settings: Settings
) -> None:
    verdicts = {
        Health.FAIL: [deployment(name="other")],
        Health.WARN: [deployment(pull_steps=[{"directory": "/home/ann/slm"}])],
        Health.PASS: [deployment()],
    }
    for health, found in verdicts.items():
        prefect.answers["/deployments/filter"] = found
        assert checks.deployments(settings).health is health
    prefect.answers["/deployments/filter"] = [deployment(schedules=[{"active": False}])]
    assert "paused: nightly" in checks.deployments(settings).seen


def test_a_queue_that_nobody_looks_at_fails(prefect: FakePrefect, settings: Settings) -> None:
    queue = {"name": "gpu", "is_paused": False, "status": "READY"}
    prefect.answers |= {
        "/deployments/filter": [deployment()],
        "/work_pools/gpu": {"is_paused": False},
        "/work_pools/gpu/workers/filter": [{"name": "w", "status": "ONLINE"}],
        "/work_pools/gpu/queues/filter": [queue],
    }
    assert checks.workers(settings).health is Health.PASS
    for path, answer, words in (
        ("/work_pools/gpu/workers/filter", [{"name": "w", "status": "OFFLINE"}], "no worker"),
        ("/work_pools/gpu/queues/filter", [queue | {"status": "NOT_READY"}], "nobody looks"),
        ("/work_pools/gpu/queues/filter", [queue | {"is_paused": True}], "gpu/gpu is paused"),
        ("/work_pools/gpu", {"is_paused": True}, "pool gpu is paused"),
    ):
        before = prefect.answers[path]
        prefect.answers[path] = answer
        health, seen, _ = checks.workers(settings)
        prefect.answers[path] = before
        assert health is Health.FAIL
        assert words in seen


def test_automations_that_are_missing_or_off_are_named(
    prefect: FakePrefect, settings: Settings
) -> None:
    ours = [{"name": name, "enabled": True} for name in checks.CRASH_AUTOMATIONS]
    prefect.answers["/automations/filter"] = ours[1:]
    health, seen, _ = checks.automations(settings)
    assert health is Health.FAIL
    assert ours[0]["name"] in seen
    prefect.answers["/automations/filter"] = ours
    health, seen, mend = checks.automations(settings)
    assert health is Health.WARN
    assert "none tells anybody" in seen
    assert mend == ("SLM_NOTIFY_URL=ADDRESS make deploy",)
    news = {"name": "slm: notify, run failed", "enabled": True}
    prefect.answers["/automations/filter"] = [*ours, news]
    assert checks.automations(settings).health is Health.PASS
    ours[0]["enabled"] = False
    prefect.answers["/automations/filter"] = [*ours, news]
    health, _, mend = checks.automations(settings)
    assert health is Health.WARN
    assert mend == (f"prefect automation resume '{ours[0]['name']}'",)


def flow_run(name: str, type: str, state: str, pool: str = "gpu") -> dict[str, Any]:
    return {
        "id": RUN,
        "name": name,
        "deployment_id": "d-1",
        "state_type": type,
        "state_name": state,
        "work_pool_name": pool,
    }


AHEAD = flow_run("tomorrow", "SCHEDULED", "Scheduled")
LATE = flow_run("slow-hare", "SCHEDULED", "Late")
AT_WORK = flow_run("fast-owl", "RUNNING", "Running")


def test_a_scheduler_that_makes_no_runs_fails(prefect: FakePrefect, settings: Settings) -> None:
    prefect.answers |= {"/deployments/filter": [deployment()], "/flow_runs/filter": [AT_WORK]}
    health, seen, _ = checks.scheduler(settings)
    assert health is Health.FAIL
    assert "the scheduler does not work" in seen
    prefect.answers["/flow_runs/filter"] = [AHEAD]
    assert checks.scheduler(settings).health is Health.PASS


def test_late_runs_fail_unless_they_wait_behind_others(
    prefect: FakePrefect, settings: Settings
) -> None:
    prefect.answers |= {
        "/deployments/filter": [deployment()],
        "/work_pools/gpu/workers/filter": [{"name": "w", "status": "ONLINE"}],
        "/flow_runs/filter": [AHEAD, LATE, AT_WORK],
    }
    health, seen, _ = checks.scheduler(settings)
    assert health is Health.PASS
    assert "1 wait behind others" in seen
    nobody = [AHEAD, LATE, flow_run("fast-owl", "RUNNING", "Running", pool="cpu")]
    prefect.answers["/flow_runs/filter"] = nobody
    stuck = checks.scheduler(settings)
    assert stuck.health is Health.FAIL
    assert "slow-hare" in stuck.seen
    prefect.answers["/flow_runs/filter"] = [AHEAD, LATE, AT_WORK]
    prefect.answers["/work_pools/gpu/workers/filter"] = [{"name": "w", "status": "OFFLINE"}]
    assert checks.scheduler(settings).health is Health.FAIL


@pytest.mark.parametrize(("run_count", "retries"), [(3, 0), (1, 4)])
def test_a_person_may_go_on_however_often_it_was_begun(
    prefect: FakePrefect,
    slm_home: Path,
    slm: Any,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    run_count: int,
    retries: int,
) -> None:
    """Counted as `resume/run` counts, or that would give the run up."""
    order = Order(run_id=RUN, flow="train", spec={}, state=RunState.FAILED, flow_run_id=RUN)
    OrderBook(slm_home / "runs").write(order)
    properties = {"run_id": {}, "host_is_dead": {}, "max_attempts": {}}
    prefect.answers |= {
        "/deployments/name/resume/run": {
            "id": "d-9",
            "parameter_openapi_schema": {"properties": properties},
        },
        f"/flow_runs/{RUN}": flow_run("owl", "FAILED", "Failed") | {"run_count": run_count},
        f"/flow_run_states/?flow_run_id={RUN}": [{"name": "Failed"}]
        + [{"name": "AwaitingRetry"}] * retries,
        "/deployments/d-9/create_flow_run": {"id": "f-1", "name": "resuming-owl"},
    }
    monkeypatch.setenv("PREFECT_API_URL", prefect.url)
    slm("runs", "resume", RUN)
    (sent,) = [body for path, body in prefect.asked if path.endswith("create_flow_run")]
    assert sent["parameters"]["max_attempts"] == max(run_count, 1 + retries) + 1


def test_an_evaluation_that_has_not_ended_is_not_begun_again(
    prefect: FakePrefect, slm_home: Path, slm: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (slm_home / "runs" / RUN / "evaluation").mkdir(parents=True)
    prefect.answers[f"/flow_runs/{RUN}/set_state"] = {"status": "ACCEPT"}
    monkeypatch.setenv("PREFECT_API_URL", prefect.url)
    assert "knows no run" in slm.refused("runs", "resume", RUN)
    for run in (AT_WORK, LATE, flow_run("owl", "COMPLETED", "Completed")):
        prefect.answers[f"/flow_runs/{RUN}"] = run
        assert f"is {run['state_name']} in Prefect" in slm.refused("runs", "resume", RUN)
    assert not [path for path, _ in prefect.asked if path.endswith("set_state")]
    prefect.answers[f"/flow_runs/{RUN}"] = flow_run("owl", "CRASHED", "Crashed")
    slm("runs", "resume", RUN)
    assert prefect.asked[-1][0].endswith("set_state")


def test_the_client_logs_in_and_pages(prefect: FakePrefect) -> None:
    prefect.login = f"Basic {base64.b64encode(b'ann:hunter2').decode()}"
    prefect.answers["/deployments/filter"] = list(range(2 * PAGE + 1))
    with PrefectClient(prefect.url, "ann:hunter2") as client:
        assert client.every("/deployments/filter") == list(range(2 * PAGE + 1))
    with (
        PrefectClient(prefect.url, "ann:wrong") as client,
        pytest.raises(PrefectUnavailable, match="PREFECT_API_AUTH_STRING") as refused,
    ):
        client.get("/admin/version")
    assert "wrong" not in str(refused.value)


def test_people_are_sent_to_the_dashboard_that_the_settings_name(
    prefect: FakePrefect, settings: Settings
) -> None:
    with prefect_client(settings) as client:
        assert client.dashboard == prefect.url.removesuffix("/api")
    named = settings.model_copy(update={"prefect_ui_url": "https://prefect.example/"})
    with prefect_client(named) as client:
        assert client.dashboard == "https://prefect.example"


def test_what_is_no_prefect_is_named(prefect: FakePrefect) -> None:
    prefect.answers["/admin/version"] = b"<html>"
    with PrefectClient(prefect.url) as client:
        with pytest.raises(PrefectUnavailable, match="no Prefect API"):
            client.get("/admin/version")
        assert client.flow_run("no-uuid") is None
        assert client.flow_run("11111111-2222-4333-8444-555555555555") is None
