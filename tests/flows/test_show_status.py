"""The status as people meet it: the flow, its artifact, its page, and `slm status` after it."""

from __future__ import annotations

import importlib
import json
import os
import time
from datetime import timedelta
from typing import Any

import pytest
from prefect import flow, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.runtime import flow_run
from prefect.states import Scheduled
from typer.testing import CliRunner

from flows.show_status import _to_be_told, show_status
from slm_core.cli.app import app
from slm_core.errors import DiskFull
from slm_core.records import Stage, utc_now
from slm_core.serving import promote
from slm_core.status import Routine, Waiting, concerns
from slm_core.store import Store
from slm_core.testing.records import make_adapter, make_call, make_decision
from slm_core.training.orders import Order
from tasks._progress import LivePage, progress
from tasks._wiring import order_book
from tasks.status import ask_prefect, gather_status

pytestmark = pytest.mark.integration


def artifacts(run_id: Any) -> list[Any]:
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
    with get_client(sync_client=True) as client:
        return client.read_artifacts(artifact_filter=wanted)


def put_live(store: Store) -> str:
    adapter = store.adapters.save(make_adapter())
    decision = store.decisions.save(make_decision(adapter_id=adapter.id))
    promote(
        store,
        adapter=adapter,
        agent_name="desk",
        track=adapter.tracks[0],
        decision=decision,
        who="flow run-0",
        reason="it won",
        to_stage=Stage.LIVE,
        auto_approve=True,
    )
    return adapter.id


def test_flow_page_and_command_say_the_same(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with service.store() as store:
        store.calls.add([make_call(number) for number in range(7)], lambda call: None)
        adapter_id = put_live(store)
    state = show_status(return_state=True)
    assert (state.name, state.message) == ("AllWell", "All is well.")
    (shown,) = artifacts(state.state_details.flow_run_id)
    assert shown.key == "status"
    assert "7 of 20 usable calls wait; 13 more start it" in shown.data
    page = (service.folder / "status.html").read_text()
    assert adapter_id in page
    assert "7 of 20 usable calls wait; 13 more start it" in page

    monkeypatch.setenv("SLM_HOME", str(service.folder))
    monkeypatch.setenv("SLM_RETRAIN_THRESHOLD", "20")
    said = CliRunner().invoke(app, ["status"])
    assert said.exit_code == 0, said.output
    assert "All is well." in said.output
    assert adapter_id in said.output

    with pytest.raises(DiskFull), order_book().carry_out(_order()):
        raise DiskFull("The disk is full.")
    _make_old(service.folder / "runs" / "run-9" / "order.json")
    state = show_status(return_state=True)
    assert state.name == "NeedsPerson"
    assert "was stopped (DiskFull: The disk is full.)" in state.message
    said = CliRunner().invoke(app, ["status", "--json"])
    assert said.exit_code == 1
    (concern,) = json.loads(said.stdout)["concerns"]
    assert (concern["key"], concern["runbook"]) == ("run.run-9", "run-stopped")


def test_a_paused_queue_is_told_when_runs_wait_in_it(service: Any) -> None:
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="resting", type="process"))
        try:
            for name in ("busy", "idle"):
                queue = client.create_work_queue(name, work_pool_name="resting")
                client.update_work_queue(queue.id, is_paused=True)
            deployment = client.create_deployment(
                client.create_flow(show_status.with_options(name="waiter")),
                name="waiter",
                work_pool_name="resting",
                work_queue_name="busy",
                enforce_parameter_schema=False,
            )
            client.create_flow_run_from_deployment(deployment, state=Scheduled(name="Late"))
            found = {pool.name: pool for pool in ask_prefect.fn().pools}
            assert (found["resting"].late, found["resting"].paused_queues) == (1, ("busy",))
            client.delete_deployment(deployment)
        finally:
            client.delete_work_pool("resting")


def test_what_no_event_tells_is_told_at_once_and_the_rest_when_it_stands(service: Any) -> None:
    red = Routine(
        deployment="settle/routes", red=5, at=utc_now() - timedelta(minutes=5), outcome="Failed"
    )
    asked = ask_prefect.fn()
    status = gather_status.fn(asked.model_copy(update={"routines": (red,)}))
    told = [one.key for one in _to_be_told(status, concerns(status))]
    assert "routine.settle/routes" in told
    waiting = Waiting(id="r", name="owl", flow="promote", since=utc_now() - timedelta(minutes=5))
    status = gather_status.fn(asked.model_copy(update={"waiting": (waiting,)}))
    assert "waiting.r" in [one.key for one in concerns(status)]
    assert "waiting.r" not in [one.key for one in _to_be_told(status, concerns(status))]


def test_a_disk_without_room_for_the_page_is_still_told_of(
    service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(
        "flows.show_status.announce", lambda event, resource, **_: told.append(resource)
    )
    # By its name: the package exports a function of the same one.
    limits = importlib.import_module("slm_core.status.concerns")
    monkeypatch.setattr(limits, "LEAST_FREE_BYTES", 2**60)
    (service.folder / "status.html").mkdir()  # no file can take its place
    assert show_status(return_state=True).name == "NeedsPerson"
    assert "slm.concern.disk" in told


def test_a_command_without_a_store_names_the_page(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLM_HOME", str(tmp_path))
    said = CliRunner().invoke(app, ["status"])
    assert said.exit_code == 1
    assert "RUNBOOK.md: store-down." in said.output


def test_progress_and_page_are_updated_in_place(service: Any) -> None:
    seen: list[str] = []

    def render() -> str:
        seen.append("page")
        return f"page {len(seen)}"

    @flow
    def work() -> str:
        with progress("train", LivePage("training-live", "as it goes", render)) as on_progress:
            on_progress(1, 4, "loss 0.9")
            time.sleep(2.5)
            on_progress(3, 4, "loss 0.5")
            time.sleep(2.5)
            on_progress(4, 4, "loss 0.4")
        return str(flow_run.id)

    found = {one.type: one for one in artifacts(work())}
    assert len(found) == 2
    assert float(found["progress"].data) == 100
    assert found["progress"].description == "train: 4 of 4, loss 0.4"
    assert found["markdown"].data == f"page {len(seen)}"
    assert len(seen) >= 2


def test_what_cannot_be_shown_neither_ends_nor_delays_the_work(
    service: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def render() -> str:
        time.sleep(1)  # as a server that is slow to answer
        raise ConnectionError

    @flow
    def work() -> float:
        began = time.monotonic()
        with progress("train", LivePage("training-live", "as it goes", render)) as on_progress:
            for done in range(1, 101):
                on_progress(done, 100, "")
            return time.monotonic() - began

    assert work() < 0.9
    assert "page of train not shown in the dashboard error=ConnectionError" in caplog.text


def _order() -> Order:
    return Order(run_id="run-9", flow="retrain", spec={}, reason="threshold")


def _make_old(path: Any) -> None:
    hour_ago = time.time() - 3600
    os.utime(path, (hour_ago, hour_ago))
