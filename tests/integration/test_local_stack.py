"""`make up` and `make down` with real processes: PostgreSQL, a Prefect server and two workers.

A newer SQLAlchemy once stopped the scheduler while everything looked healthy; only runs
that appear on their own show that it works. The project is a small one of its own.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pytest

from slm_core.errors import StackError
from slm_core.local_stack import LocalStack
from slm_core.local_stack.ports import is_free
from slm_core.local_stack.processes import ProcessId, is_alive
from slm_core.settings import Settings

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
REPOSITORY = Path(__file__).parents[2]

LOGIN = ("slm", "a-pass-word")

FLOW = """
import json, os, subprocess, sys, time
from prefect import flow

@flow(name="tick")
def tick(child: bool = False, wait: bool = False) -> None:
    saw = {"cwd": os.getcwd(), "database": os.environ["SLM_DATABASE_URL"]}
    if child:  # as a trainer would be: in a session of its own, and outliving the flow
        sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
        saw["child"] = subprocess.Popen(sleeper, start_new_session=True).pid
    with open(os.path.join(os.environ["SLM_HOME"], "saw.json"), "w") as file:
        json.dump(saw, file)
    if wait:
        try:
            time.sleep(600)
        finally:  # as a training saves its checkpoint
            time.sleep(2)
            open(os.path.join(os.environ["SLM_HOME"], "saved"), "w").close()
"""
DEPLOYMENTS = """
pull:
  - prefect.deployments.steps.set_working_directory:
      directory: "{{ $SLM_REPO }}"
deployments:
  - name: cron
    entrypoint: flows/count_ticks.py:tick
    work_pool: {name: cpu, work_queue_name: control}
    schedules:
      - {slug: yearly, cron: "0 0 1 1 *", timezone: UTC}
  - name: gpu
    entrypoint: flows/count_ticks.py:tick
    work_pool: {name: gpu, work_queue_name: gpu}
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """A stack that is up, for all tests of this file; the last one takes it down."""
    project = tmp_path_factory.mktemp("project")
    (project / "flows").mkdir()
    (project / "flows" / "count_ticks.py").write_text(FLOW)
    (project / "prefect.yaml").write_text(DEPLOYMENTS)
    (project / "deployments").symlink_to(REPOSITORY / "deployments")
    # Not pytest's folder: PostgreSQL runs as another user when we are root.
    home = Path(tempfile.mkdtemp(prefix="slm-stack-"))
    home.chmod(0o755)
    environ = {
        "SLM_HOME": str(home),
        "AZURE_ENDPOINT": "http://127.0.0.1:9",  # a configured teacher: no model is needed here
        "PATH": os.environ["PATH"],
        "PREFECT_SERVER_API_AUTH_STRING": ":".join(LOGIN),
        "SLM_RETRAIN_THRESHOLD": "7",
    }
    # Takes the stack down when its input ends: after the last test, or when we are killed.
    code = (
        "import sys; sys.stdin.read(); from pathlib import Path\n"
        "from slm_core.local_stack import LocalStack; from slm_core.settings import Settings\n"
        f"LocalStack(Settings.from_env({environ!r}), Path({str(project)!r})).down()"
    )
    down = [sys.executable, "-c", code]
    stack = LocalStack(Settings.from_env(environ), project)
    with subprocess.Popen(down, cwd=REPOSITORY, stdin=subprocess.PIPE, start_new_session=True):
        stack.up()
        yield stack
    shutil.rmtree(home)


def running(stack: LocalStack) -> dict[str, ProcessId]:
    return {part.name: part.process for part in stack.status() if part.running}


def api(stack: LocalStack, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    port = {part.name: part.port for part in stack.status()}["prefect"]
    address = f"http://127.0.0.1:{port}/api{path}"
    answer = httpx.request(method, address, json=body, timeout=30, auth=LOGIN)
    return answer.raise_for_status().json()


def begin(stack: LocalStack, deployment: str, **parameters: Any) -> str:
    """Create a run of a deployment; return its id."""
    found = api(stack, "GET", f"/deployments/name/tick/{deployment}")
    path = f"/deployments/{found['id']}/create_flow_run"
    return str(api(stack, "POST", path, {"parameters": parameters})["id"])


def state_of(stack: LocalStack, run: str) -> Any:
    return api(stack, "GET", f"/flow_runs/{run}")["state"]


def eventually(check: Callable[[], Any], seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.3)
    return found


def test_the_scheduler_creates_the_runs_of_a_cron(stack: LocalStack) -> None:
    scheduled = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    runs = eventually(lambda: api(stack, "POST", "/flow_runs/filter", scheduled), seconds=75)
    assert all(run["auto_scheduled"] for run in runs)


def test_a_worker_completes_a_run_with_the_settings_of_the_stack(stack: LocalStack) -> None:
    run = begin(stack, "gpu", child=True)

    def ended() -> Any:
        state = state_of(stack, run)
        return state["type"] in ("COMPLETED", "FAILED", "CRASHED") and state

    state = eventually(ended, seconds=60)
    assert state["type"] == "COMPLETED", state["message"]
    saw = json.loads((stack.settings.home / "saw.json").read_text())
    assert saw["cwd"] == str(stack.project)
    assert saw["database"].startswith("postgresql+psycopg://")
    assert saw["database"].endswith("/slm")


def test_the_gpu_pool_lets_one_run_through_at_a_time_and_on_call_goes_first(
    stack: LocalStack,
) -> None:
    assert api(stack, "GET", "/work_pools/gpu")["concurrency_limit"] == 1
    queues = api(stack, "POST", "/work_pools/gpu/queues/filter", {})
    priority = {queue["name"]: queue["priority"] for queue in queues}
    assert priority["on-call"] == 1 < priority["gpu"] == 10


def test_up_again_leaves_running_parts_alone(stack: LocalStack) -> None:
    before = running(stack)
    assert list(before) == ["postgres", "prefect", "worker-gpu", "worker-cpu"]
    stack.up()
    assert running(stack) == before


def test_up_starts_a_dead_part_again_and_only_that(stack: LocalStack) -> None:
    before = running(stack)
    psutil.Process(before["worker-cpu"].pid).kill()
    eventually(lambda: "worker-cpu" not in running(stack), seconds=5)
    stack.up()
    after = running(stack)
    assert after.pop("worker-cpu") != before.pop("worker-cpu")
    assert after == before


def test_a_deployment_that_prefect_refuses_stops_up_with_its_words(stack: LocalStack) -> None:
    file = stack.project / "prefect.yaml"
    good = file.read_text()
    file.write_text(good.replace("count_ticks.py:tick", "count_ticks.py:tock"))
    with pytest.raises(StackError, match=r"make deploy(.|\n)*tock"):
        stack.up()
    file.write_text(good)
    stack.up()


def test_two_commands_at_once_are_refused(stack: LocalStack) -> None:
    with (stack.home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StackError, match="is at work"):
            stack.down()


def test_the_login_is_asked_of_everyone_and_told_to_shells_alone(stack: LocalStack) -> None:
    port = {part.name: part.port for part in stack.status()}["prefect"]
    address = f"http://127.0.0.1:{port}/api/flows/filter"
    assert httpx.post(address, json={}).status_code == 401
    assert f"PREFECT_API_AUTH_STRING={':'.join(LOGIN)}\n" in stack.shell_file.read_text()


def test_a_shell_finds_commands_and_settings_in_the_file(stack: LocalStack) -> None:
    found, told = in_a_shell(stack, "command -v slm prefect"), shell_variables(stack)
    folder = Path(sys.executable).parent
    assert found == [str(folder / "slm"), str(folder / "prefect")]
    assert told["PATH"] == f"{folder}:/usr/bin:/bin"
    assert told["DO_NOT_TRACK"] == "1"
    assert told["SLM_RETRAIN_THRESHOLD"] == "7"
    assert told["SLM_SPOOL_DIR"] == str(stack.settings.spool_dir)
    assert "AZURE_ENDPOINT" not in told


def test_the_key_of_blocks_is_not_in_the_database_beside_them(stack: LocalStack) -> None:
    kind = api(stack, "GET", "/block_types/slug/secret")["id"]
    of_kind = {"block_schemas": {"block_type_id": {"any_": [kind]}}}
    schema = api(stack, "POST", "/block_schemas/filter", of_kind)[0]["id"]
    block = {"name": "probe", "block_type_id": kind, "block_schema_id": schema}
    api(stack, "POST", "/block_documents/", block | {"data": {"value": "hidden"}})
    url = shell_variables(stack)["SLM_DATABASE_URL"].replace("+psycopg", "").rpartition("/")[0]
    with psycopg.connect(f"{url}/prefect") as connection:
        stored = connection.execute("select data from block_document where name = 'probe'")
        assert "hidden" not in str(stored.fetchone())
        keys = connection.execute("select * from configuration where key = 'ENCRYPTION_KEY'")
        assert keys.fetchall() == []


def in_a_shell(stack: LocalStack, script: str) -> list[str]:
    """Return the lines that a script writes in a shell that knows the stack."""
    script = f"source {stack.shell_file}; {script}"
    environ = {"PATH": "/usr/bin:/bin"}
    return subprocess.check_output(["bash", "-euc", script], env=environ, text=True).splitlines()


def shell_variables(stack: LocalStack) -> dict[str, str]:
    return dict(line.split("=", 1) for line in in_a_shell(stack, "env"))


def test_another_login_than_the_servers_is_named(stack: LocalStack) -> None:
    environ = stack.settings.child_environment() | {"PREFECT_SERVER_API_AUTH_STRING": "slm:other"}
    other = LocalStack(Settings.from_env(environ), stack.project)
    with pytest.raises(StackError, match="another login than PREFECT_SERVER_API_AUTH_STRING"):
        other.up()


def test_the_prefect_command_finds_the_stack(stack: LocalStack) -> None:
    port = {part.name: part.port for part in stack.status()}["prefect"]
    assert f"http://127.0.0.1:{port}/api" in (stack.project / "prefect.toml").read_text()


def test_down_lets_runs_save_and_ends_everything_that_up_and_they_started(
    stack: LocalStack,
) -> None:
    parts = stack.status()
    saw = stack.settings.home / "saw.json"
    grandchild = json.loads(saw.read_text())["child"]
    assert psutil.pid_exists(grandchild)
    saw.unlink()
    begin(stack, "cron", wait=True)  # the child keeps the one place of worker-gpu
    eventually(saw.exists, seconds=60)

    stack.down()

    assert (stack.settings.home / "saved").exists()
    assert stack.status() == []
    assert not any(is_alive(part.process) for part in parts)
    eventually(lambda: not psutil.pid_exists(grandchild), seconds=5)  # once it is reaped
    assert all(is_free(part.port) for part in parts if part.port)
    assert not (stack.project / "prefect.toml").exists()
    stack.down()  # nothing left to do is no error
    bare = LocalStack(Settings.from_env({"SLM_HOME": str(stack.settings.home)}), stack.project)
    with pytest.raises(StackError, match="had a teacher of its own"):
        bare.up()
