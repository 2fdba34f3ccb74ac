"""News on a real Prefect server over PostgreSQL, sent to a real receiver: each once, and no more.

SQLite loses events under load. The flows run in a process of their own, as under a worker: events
of this process may go to another test's server.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import httpx
import pytest
from prefect import get_client
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.settings import PREFECT_API_URL, temporary_settings
from pydantic import SecretStr

from slm_core.local_stack import prefect_api
from slm_core.local_stack.ports import free_port
from slm_core.local_stack.postgres import ensure_database
from slm_core.local_stack.processes import start, stop, wait_until
from slm_core.records import utc_now
from slm_core.testing.webhook_receiver import WebhookReceiver
from tasks._notifications import BLOCK, NEWS, forget_address, notification_automations

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

FLOWS = """
from prefect import flow, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import CronSchedule
from prefect.states import Crashed
from flows.show_status import show_status
from slm_core.store import open_store
from tasks._events import announce, announce_sick
from tasks._wiring import current_settings

@flow
def ingest():
    announce("slm.captures.threshold-reached", "slm.claim.claim-1", claim_id="claim-1", calls=100)

@flow
def retrain():
    raise RuntimeError('no "room" <left>')

@flow(name="check-gpus")
def check_gpus():
    announce_sick("GPU-7", "Xid 79: the card has fallen off the bus", check="kernel_log")
    announce_sick("GPU-7", "the same, seen by another check", check="driver")

@flow
def promote():
    announce("slm.promotion.waiting", "slm.promotion.promotion-1", adapter_id="adapter-1")
    announce("slm.promotion.decided", "slm.promotion.promotion-1", outcome="approved")

@flow(name="promote")
def promote_in_vain():
    raise RuntimeError("2 of 2 moves were not made")

@flow
def settle():
    announce("slm.canary.stepped-back", "slm.promotion.p-2", routes="desk/toolcall",
             reason="40 of 40")

@flow
def resume():
    announce("slm.training.failed", "slm.run.run-1", why="crashed 3 times")

def failed_night():
    with get_client(sync_client=True) as client:
        schedule = DeploymentScheduleCreate(schedule=CronSchedule(cron="0 2 * * *"), active=True)
        nightly = client.create_deployment(
            client.create_flow(show_status.with_options(name="retrain")),
            name="nightly", schedules=[schedule], enforce_parameter_schema=False,
        )
        run = client.create_flow_run_from_deployment(nightly)
        client.set_flow_run_state(run.id, Crashed(message="the disk is full"), force=True)

ingest()
retrain(return_state=True)
check_gpus()
promote()
promote_in_vain(return_state=True)
settle()
resume()
open_store(current_settings().database_url).close()
print(show_status(return_state=True).name)
failed_night()
for _ in range(2):  # the second is within the time that the same is not said again
    state = show_status(return_state=True)
    print(state.name, state.message)
"""


class Server(NamedTuple):
    """A Prefect server."""

    api_url: str
    log: Path

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        answer = httpx.request(method, self.api_url + path, json=body, timeout=60)
        return answer.raise_for_status().json()


@pytest.fixture(scope="module")
def server(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Prefect server with a database of its own on PostgreSQL."""
    home = tmp_path_factory.mktemp("prefect")
    ensure_database(postgres_url, "prefect_news")
    database = postgres_url.rsplit("/", 1)[0].replace("+psycopg", "+asyncpg") + "/prefect_news"
    port = free_port(random.randint(30_000, 40_000))
    found = Server(f"http://127.0.0.1:{port}/api", home / "log")
    process = start(
        [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)],
        found.log,
        environment={
            "PATH": os.environ["PATH"],
            "PREFECT_HOME": str(home),
            "PREFECT_API_URL": found.api_url,
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": database,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_LOGGING_SERVER_LEVEL": "INFO",
            "DO_NOT_TRACK": "1",
        },
        cwd=home,
    )
    try:
        wait_until(
            lambda _: prefect_api.answers(found.api_url),
            process,
            found.log,
            what="prefect",
            timeout_seconds=150,
        )
        yield found
    finally:
        stop(process, by=15, grace_seconds=20)


@pytest.fixture(scope="module")
def receiver() -> Iterator[WebhookReceiver]:
    with WebhookReceiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def output(
    server: Server, receiver: WebhookReceiver, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """What the flows printed; every automation was made before."""
    with temporary_settings({PREFECT_API_URL: server.api_url}):
        with get_client(sync_client=True) as client:
            made = notification_automations(SecretStr(receiver.url))
            for automation in made:
                client.create_automation(automation)
            client.create_automation(_probe(made[0]))
        # The address may change, the automations go on with the same block.
        again = notification_automations(SecretStr(receiver.url))
    blocks = server.ask("POST", "/block_documents/filter", {})
    assert [block["name"] for block in blocks] == [BLOCK]
    assert {action.block_document_id.hex for one in again for action in one.actions} == {
        blocks[0]["id"].replace("-", "")
    }
    _wait_until_automations_work(server, receiver)
    home = tmp_path_factory.mktemp("slm")
    done = subprocess.run(
        [sys.executable, "-c", FLOWS],
        cwd=Path(__file__).parents[2],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "PREFECT_HOME": str(home / "prefect"),
            "PREFECT_API_URL": server.api_url,
            "SLM_HOME": str(home),
            "DO_NOT_TRACK": "1",
        },
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _probe(like: AutomationCore) -> AutomationCore:
    """Return an automation that calls the same block for the event ``test.probe``."""
    (action,) = like.actions
    return AutomationCore(
        name="probe",
        trigger=EventTrigger(
            expect={"test.probe"}, posture=Posture.Reactive, threshold=1, within=timedelta(0)
        ),
        actions=[action.model_copy(update={"payload": '{"news": "probe"}'})],
    )


def _wait_until_automations_work(server: Server, receiver: WebhookReceiver) -> None:
    """Send probes until one arrives: a server takes up new automations all at once, but late."""
    deadline = time.monotonic() + 60
    while not receiver.received:
        assert time.monotonic() < deadline, server.log.read_text()[-3000:]
        probe = {
            "id": str(uuid4()),
            "event": "test.probe",
            "occurred": utc_now().isoformat(),
            "resource": {"prefect.resource.id": "test.probe"},
        }
        httpx.post(f"{server.api_url}/events", json=[probe], timeout=30).raise_for_status()
        time.sleep(1)
    time.sleep(3)  # for the probes that are on their way
    receiver.received.clear()


def test_each_event_is_told_once(server: Server, receiver: WebhookReceiver, output: str) -> None:
    wanted = sorted([news.name for news in NEWS])
    receiver.wait_for(len(wanted), timeout_seconds=60)
    time.sleep(3)  # for what must not come
    assert receiver.refused == []
    assert sorted(one["news"] for one in receiver.received) == wanted, server.log.read_text()[
        -3000:
    ]
    news = {one["news"]: one for one in receiver.received}
    assert news["threshold reached"]["text"].startswith("100 new usable calls: claim claim-1")
    assert news["run failed"]["text"].endswith('RuntimeError: no "room" <left>')
    assert news["run failed"]["runbook"] == "training-failed"
    assert news["training given up"]["about"] == "slm.run.run-1"
    # Of two checks of one card the first that arrives; which that is, the server may decide.
    said = news["gpu sick"]["text"]
    assert said.startswith("GPU GPU-7 on ")
    assert said.endswith(("Xid 79: the card has fallen off the bus", "seen by another check"))
    assert news["promotion waiting"]["text"] == "Promotion promotion-1 waits for a person."
    assert "2 of 2 moves" in news["promotion failed"]["text"]
    assert "canary of desk/toolcall was taken back: 40 of 40" in news["canary stepped back"]["text"]
    assert "the disk is full" in news["needs a person"]["text"]
    assert news["needs a person"]["runbook"] == "night-not-green"


def test_each_names_the_page_of_its_run(
    server: Server, receiver: WebhookReceiver, output: str
) -> None:
    for one in receiver.wait_for(len(NEWS), timeout_seconds=60):
        address, _, run_id = one["run"].rpartition("/")
        assert address == server.api_url.removesuffix("api") + "runs/flow-run"
        assert server.ask("GET", f"/flow_runs/{run_id}")["id"] == run_id


def test_the_status_is_well_until_a_night_fails(output: str) -> None:
    first, second, third = output.splitlines()
    assert first == "AllWell"
    assert second == third
    assert second.startswith("NeedsPerson 1 thing needs a person. The last night (")


def test_the_address_is_in_the_block_alone(
    server: Server, receiver: WebhookReceiver, output: str
) -> None:
    receiver.wait_for(len(NEWS), timeout_seconds=60)
    seen = [
        server.log.read_text(),
        str(server.ask("POST", "/automations/filter", {})),
        str(server.ask("POST", "/block_documents/filter", {})),
        str(server.ask("POST", "/artifacts/filter", {})),
        str(server.ask("POST", "/events/filter", {"limit": 50})),
        str(server.ask("POST", "/logs/filter", {})),
    ]
    assert [text for text in seen if receiver.token in text] == []
    secret = {"include_secrets": True}
    assert receiver.token in str(server.ask("POST", "/block_documents/filter", secret))


def test_without_an_address_people_are_told_as_before_until_it_is_forgotten(
    server: Server, output: str
) -> None:
    (block,) = server.ask("POST", "/block_documents/filter", {})
    with temporary_settings({PREFECT_API_URL: server.api_url}):
        actions = [action for one in notification_automations(None) for action in one.actions]
        assert {str(action.block_document_id) for action in actions} == {block["id"]}
        for _ in range(2):
            forget_address()
        assert notification_automations(None) == ()
    assert server.ask("POST", "/block_documents/filter", {}) == []
