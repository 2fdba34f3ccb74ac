"""Deploying to a real server: what is made, what a second time changes, what stays paused."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from prefect.client.orchestration import PrefectClient, get_client
from prefect.settings import (
    PREFECT_API_KEY,
    PREFECT_API_SSL_CERT_FILE,
    PREFECT_API_URL,
    PREFECT_CLIENT_CUSTOM_HEADERS,
    temporary_settings,
)

from slm_core.errors import ConfigError, StackError
from tasks._automations import reconcile
from tasks._notifications import forget_address
from tasks.deploy import _environment_to_deploy_in, deploy

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
T = TypeVar("T")

FLOW = '''
from prefect import flow

@flow(name="tick")
def tick(times: int = 1) -> None:
    """Tick.

    Args:
        times: how often.
    """
'''
DEPLOYMENTS = """
pull:
  - prefect.deployments.steps.set_working_directory:
      directory: "{{ $SLM_REPO }}"
deployments:
  - name: often
    description: Ticks.
    version: "{{ $CODE_VERSION }}"
    entrypoint: flows/count_ticks.py:tick
    work_pool: {name: gpu, work_queue_name: on-call}
    schedules:
      - {slug: yearly, cron: "0 0 1 1 *", timezone: UTC}
"""


@pytest.fixture(scope="module")
def project(prefect_server: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of one flow with our pools, deployed once."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "flows").mkdir()
    (folder / "flows" / "count_ticks.py").write_text(FLOW)
    (folder / "prefect.yaml").write_text(DEPLOYMENTS)
    (folder / "deployments").symlink_to(ROOT / "deployments")
    said = told(folder)
    assert "pool gpu: created, type process" in said
    assert "queue gpu/on-call: created, priority 1" in said
    return folder


def told(folder: Path, *, notify: bool = True, **types: Any) -> list[str]:
    """Deploy; return what was said."""
    said: list[str] = []
    deploy(folder, types, said.append, notify=notify)
    return said


def ask(question: Callable[[PrefectClient], Coroutine[Any, Any, T]]) -> T:
    async def run() -> T:
        async with get_client() as client:
            return await question(client)

    return asyncio.run(run())


def test_pools_and_queues_are_as_declared(project: Path) -> None:
    gpu = ask(lambda client: client.read_work_pool("gpu"))
    assert (gpu.type, gpu.concurrency_limit) == ("process", 1)
    queues = ask(lambda client: client.read_work_queues(work_pool_name="gpu"))
    priorities = {queue.name: queue.priority for queue in queues}
    assert priorities["on-call"] == 1 < priorities["gpu"] == 10
    assert ask(lambda client: client.read_work_pool("cpu")).concurrency_limit is None


def test_the_deployment_carries_version_form_and_a_portable_path(project: Path) -> None:
    found = ask(lambda client: client.read_deployment_by_name("tick/often"))
    assert found.version == "0.1.0"
    assert found.work_queue_name == "on-call"
    assert found.parameter_openapi_schema is not None
    assert found.parameter_openapi_schema["properties"]["times"]["description"] == "how often."
    assert "{{ $SLM_REPO }}" in str(found.pull_steps)


def test_a_second_time_changes_nothing_and_what_is_paused_stays_paused(project: Path) -> None:
    found = ask(lambda client: client.read_deployment_by_name("tick/often"))
    (schedule,) = found.schedules

    async def pause(client: PrefectClient) -> None:
        await client.update_deployment_schedule(found.id, schedule.id, active=False)
        queue = await client.read_work_queue_by_name("gpu", work_pool_name="gpu")
        await client.update_work_queue(queue.id, is_paused=True)

    ask(pause)
    said = told(project)
    assert "pool gpu: unchanged, type process" in said
    assert "queue gpu/gpu: unchanged, paused" in said
    again = ask(lambda client: client.read_deployment_by_name("tick/often"))
    assert again.id == found.id
    assert [one.active for one in again.schedules] == [False]
    queue = ask(lambda client: client.read_work_queue_by_name("gpu", work_pool_name="gpu"))
    assert queue.is_paused


def test_what_somebody_changed_by_hand_is_put_right(project: Path) -> None:
    async def change(client: PrefectClient) -> None:
        queue = await client.read_work_queue_by_name("on-call", work_pool_name="gpu")
        await client.update_work_queue(queue.id, priority=50, is_paused=True)

    ask(change)
    assert "queue gpu/on-call: updated, paused" in told(project)
    queue = ask(lambda client: client.read_work_queue_by_name("on-call", work_pool_name="gpu"))
    assert (queue.priority, queue.is_paused) == (1, True)


def test_a_pool_of_another_type_is_refused_with_what_to_do(project: Path) -> None:
    with pytest.raises(ConfigError, match="prefect work-pool delete cpu"):
        told(project, cpu="kubernetes")


def test_a_deployment_that_prefect_refuses_is_an_error_with_its_words(
    project: Path, tmp_path: Path
) -> None:
    (tmp_path / "flows").symlink_to(project / "flows")
    (tmp_path / "deployments").symlink_to(project / "deployments")
    (tmp_path / "prefect.yaml").write_text(DEPLOYMENTS.replace(":tick", ":tock"))
    with pytest.raises(StackError, match=r"prefect deploy failed(.|\n)*tock"):
        told(tmp_path)


def test_it_says_whether_anybody_is_told(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``resume/run`` there, which the automations start; both are taken away again."""
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "go_on.py").write_text(FLOW.replace('"tick"', '"resume"'))
    (tmp_path / "deployments").symlink_to(project / "deployments")
    declared = DEPLOYMENTS.replace("often", "run").replace("count_ticks", "go_on")
    (tmp_path / "prefect.yaml").write_text(declared)
    try:
        assert "notifications: none, for SLM_NOTIFY_URL is not set" in told(tmp_path)
        with monkeypatch.context() as shell:
            shell.setenv("SLM_NOTIFY_URL", "http://127.0.0.1:9/hook")
            assert "notifications: posted to SLM_NOTIFY_URL" in told(tmp_path)
        # A shell that does not know the address silences nobody.
        before = ask(lambda client: client.read_automations())
        said = told(tmp_path)
        assert "notifications: posted where they were; SLM_NOTIFY_URL is not set here" in said
        assert ask(lambda client: client.read_automations()) == before
        assert "notifications: none, as asked" in told(tmp_path, notify=False)
        assert "notifications: none, for SLM_NOTIFY_URL is not set" in told(tmp_path)
    finally:
        reconcile(())
        forget_address()
        found = ask(lambda client: client.read_deployment_by_name("resume/run"))
        ask(lambda client: client.delete_deployment(found.id))


def test_prefect_deploy_reaches_the_server_as_we_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLM_REPO", "/srv/here")
    ours = {
        PREFECT_API_URL: "https://prefect.example/api",
        PREFECT_API_KEY: "key",
        PREFECT_API_SSL_CERT_FILE: "/etc/ca.pem",
        PREFECT_CLIENT_CUSTOM_HEADERS: {"X-Team": "slm"},
    }
    with temporary_settings(ours):
        found = _environment_to_deploy_in()
    assert found["PREFECT_API_URL"] == "https://prefect.example/api"
    assert found["PREFECT_API_KEY"] == "key"
    assert found["PREFECT_API_SSL_CERT_FILE"] == "/etc/ca.pem"
    assert found["PREFECT_CLIENT_CUSTOM_HEADERS"] == '{"X-Team": "slm"}'
    assert "SLM_REPO" not in found  # it would be baked into the pull step


def test_a_server_that_goes_away_before_the_automations_is_named(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> None:
        raise httpx.ConnectError("refused")

    monkeypatch.setattr("tasks.deploy.crash_automations", away)
    with pytest.raises(StackError, match="does not answer"):
        told(project)


def test_without_an_address_it_says_how_to_get_one() -> None:
    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        pytest.raises(ConfigError, match="PREFECT_API_URL is not set"),
    ):
        told(ROOT)


def test_a_server_that_does_not_answer_is_named() -> None:
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        pytest.raises(StackError, match=r"127\.0\.0\.1:9/api does not answer"),
    ):
        told(ROOT)


def test_a_refused_login_names_the_variable() -> None:
    for address in _refusing():
        with (
            temporary_settings({PREFECT_API_URL: address}),
            pytest.raises(StackError, match="PREFECT_API_AUTH_STRING"),
        ):
            told(ROOT)


def _refusing() -> Iterator[str]:
    """Serve as a server with a login does to those who have none."""

    class Refuse(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(401)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Refuse) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/api"
        server.shutdown()
