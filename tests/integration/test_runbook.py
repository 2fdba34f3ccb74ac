"""RUNBOOK.md tells the truth: every command in it is run, on a stack that `make up` started.

The pages are tested in their order, in one shell environment, with ids of runs, claims and
routes that were prepared. Before the page on a power loss everything is really killed.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, get_args

import httpx
import psutil
import pytest
import typer
from typer.testing import CliRunner

from slm_core.cli import run_logs
from slm_core.cli.app import app
from slm_core.local_stack import LocalStack
from slm_core.records import Quarantined, RunState
from slm_core.serving import promote
from slm_core.settings import Settings
from slm_core.status import RunbookPage
from slm_core.store import Store, open_store
from slm_core.testing.langfuse_receiver import LangfuseReceiver
from slm_core.testing.provider import FakeProvider
from slm_core.testing.records import make_adapter, make_call, make_decision
from slm_core.testing.webhook_receiver import WebhookReceiver
from slm_core.training import TrainingSpec, checkpoints
from slm_core.training.orders import Order, OrderBook, Part

pytestmark = [pytest.mark.integration, pytest.mark.timeout(420)]

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "RUNBOOK.md").read_text()

ELSEWHERE = {
    "nvidia-smi --gpu-reset -i GPU",
    "sudo rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia && sudo modprobe nvidia",
    "sudo systemctl reboot",
    "docker compose exec worker-cpu docker/entrypoint.sh slm doctor",
    "git fetch --tags && git checkout VERSION",
    "make install",
}
"""Commands that cannot run here: hardware, a container engine, a release to fetch."""

MAY_SAY_NO = {
    "slm status": 1,
    "slm doctor": 1,
    "slm gpus check": 1,
    "slm gpus check --no-active": 1,
    "slm models check llama-cep": 2,
    "make status": 2,
}
"""Commands that end with this status when they find something wrong, besides 0."""

RUN_EACH_TIME = re.compile(r"^(source|export|DB=|make |prefect work-queue|slm store upgrade)")
"""What later lines need, or what differs from page to page; the rest is run once."""


class Block(NamedTuple):
    """One fenced block of commands."""

    elsewhere: bool
    lines: tuple[str, ...]


def pages() -> dict[str, str]:
    """Return the text of each page by its heading."""
    parts = re.split(r"^## (.+)$", TEXT, flags=re.MULTILINE)
    return dict(zip(["first", *parts[1::2]], parts[0::2], strict=True))


def blocks(text: str) -> list[Block]:
    found = re.findall(r"^```sh( elsewhere)?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(bool(mark), tuple(body.splitlines())) for mark, body in found]


PAGES = pages()


# ---------------------------------------------------------------- what needs no stack


def test_every_page_is_in_the_list_and_has_its_parts() -> None:
    listed = re.findall(r"^\| \[([a-z-]+)\]\(#([a-z-]+)\)", TEXT, re.MULTILINE)
    assert [name for name, anchor in listed if name == anchor] == list(PAGES)[1:]
    for name, text in list(PAGES.items())[1:]:
        for part in ("**Means.**", "**Do", "**Over when", "**Call**"):
            if name == "restore-from-backup" and part == "**Do":
                continue  # it has three of them, by name
            assert part in text, f"{name} lacks {part}"


def test_links_between_pages_lead_somewhere() -> None:
    assert set(re.findall(r"\]\(#([a-z-]+)\)", TEXT)) <= set(PAGES)


def test_every_alarm_of_the_status_has_its_page() -> None:
    assert set(get_args(RunbookPage)) <= set(PAGES)


def test_only_what_cannot_run_here_is_left_out() -> None:
    left_out = {line for block in blocks(TEXT) if block.elsewhere for line in block.lines}
    assert left_out == ELSEWHERE
    assert not re.search(r"^```(?!sh$|sh elsewhere$|$)", TEXT, re.MULTILINE), "every fence is sh"


def test_commands_in_the_text_exist() -> None:
    inline = re.findall(r"(?<!`)`((?:slm|make|prefect) [^`]+)`", TEXT.replace("\n", " "))
    assert len(inline) > 10
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in inline:
        program, *words = shlex.split(command)
        plain = [word for word in words if re.fullmatch(r"[a-z][a-z-]*", word)]
        if program == "make":
            assert set(plain) <= targets, command
        elif program == "slm":
            group, rest = typer.main.get_command(app), list(plain)
            while rest and rest[0] in getattr(group, "commands", {}):
                group = group.commands[rest.pop(0)]  # type: ignore[attr-defined]
            assert not hasattr(group, "commands"), command
            options = {option for one in group.params for option in one.opts}
            assert {word for word in words if word.startswith("--")} <= options, command


# ------------------------------------------------------------------------ on a stack


@dataclass
class Site:
    """A project with a stack, and what the words in capitals stand for."""

    project: Path
    environ: dict[str, str]
    ids: dict[str, str] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)

    def variables(self) -> dict[str, str]:
        """What `make up` tells a shell."""
        told = (self.project / ".slm" / "stack" / "environment.sh").read_text()
        pairs = (words for line in told.splitlines() for words in shlex.split(line)[1:])
        return dict(pair.split("=", 1) for pair in pairs)

    def settings(self) -> Settings:
        return Settings.from_env(self.environ | self.variables() | {"SLM_HOME": str(self.home)})

    @property
    def home(self) -> Path:
        return self.project / ".slm"

    def stack(self) -> LocalStack:
        return LocalStack(Settings.from_env({"SLM_HOME": str(self.home)}), self.project)

    def api(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        url = f"{self.variables()['PREFECT_API_URL']}{path}"
        answer = httpx.request(method, url, json=body, timeout=30).raise_for_status()
        return answer.json() if answer.content else None

    def run(self, script: str, name: str) -> str:
        """Run lines in a shell that knows the stack; return what they wrote."""
        there = (self.home / "stack" / "environment.sh").is_file()
        known = "source .slm/stack/environment.sh\n" if there else ""
        ran = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", known + script],
            cwd=self.project,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        wrote = f"{script}\n---- stdout\n{ran.stdout}\n---- stderr\n{ran.stderr}"
        assert ran.returncode == 0, f"{name}: status {ran.returncode}\n{wrote}"
        assert "Traceback" not in ran.stderr, f"{name}\n{wrote}"
        return ran.stdout


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """A project of its own that `make up` runs, with the data that pages speak of."""
    # Not pytest's folder: PostgreSQL runs as another user when we are root.
    project = Path(tempfile.mkdtemp(prefix="slm-runbook-"))
    project.chmod(0o755)
    for name in subprocess.check_output(
        ["git", "ls-tree", "--name-only", "HEAD"], cwd=ROOT, text=True
    ).split():
        if name != "prefect.toml":
            (project / name).symlink_to(ROOT / name)
    (project / ".venv").symlink_to(sys.prefix)
    with FakeProvider({}) as teacher, LangfuseReceiver() as langfuse, WebhookReceiver() as people:
        environ = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "HOME": str(project),
            "PYTHON": sys.executable,  # make then installs nothing
            "PREFECT_HOME": str(project / "prefect-home"),
            "HF_HUB_OFFLINE": "1",
            "AZURE_ENDPOINT": teacher.base_url,
            "AZURE_API_KEY": "key",
            "SLM_NOTIFY_URL": people.url,
            "LANGFUSE_PUBLIC_KEY": langfuse.public_key,
            "LANGFUSE_SECRET_KEY": langfuse.secret_key,
            "LANGFUSE_BASE_URL": langfuse.base_url,
        }
        site = Site(project, environ)
        # Takes the stack down when its input ends: after the last test, or when we are killed.
        down = f"read -r _; cd {project} && exec {sys.executable} -m slm_core.local_stack down"
        with subprocess.Popen(
            ["bash", "-c", down],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        ):
            assert "notifications: posted to SLM_NOTIFY_URL" in site.run("make up", "setup")
            with open_store(site.settings().database_url) as store:
                _prepare(site, store)
            yield site
    shutil.rmtree(project, ignore_errors=True)


def _prepare(site: Site, store: Store) -> None:
    book = OrderBook(site.home / "runs")
    plan = TrainingSpec(base_model="models/none", cep="compact")
    for run_id in ("crashed-run", "stuck-run"):
        part = Part(run_id=run_id, training=plan)
        book.write(Order(run_id=run_id, flow="train", spec={}, parts=(part,), dataset_id="d"))
        training = site.home / "runs" / run_id / "training"
        training.mkdir(parents=True)
        (training / "events.jsonl").write_text("{}\n")
        (training / "worker.log").write_text("the worker's words\n")
        checkpoints.save(training / "checkpoints", 7, {"weights": b"w"}, {"step": 7}, keep=1)
    book.note("stuck-run", state=RunState.INTERRUPTED)
    calls = [make_call(number) for number in range(100)]
    store.calls.add(calls, lambda call: None)
    (claim,) = store.claims.make(100)
    store.claims.take(claim.id, "stuck-run")
    store.quarantine.add([Quarantined(source="a.seg:16", reason="not JSON", raw="{")])
    for number in (1, 2):
        adapter = store.adapters.save(
            make_adapter(id=f"adapter-{number}", weights_sha256=f"{number}")
        )
        decision = make_decision(id=f"decision-{number}", adapter_id=adapter.id)
        route = promote(
            store,
            adapter=adapter,
            agent_name=calls[0].agent_name,
            track="toolcall",
            decision=store.decisions.save(decision),
            who="me",
            reason="test",
            auto_approve=True,
        )
    site.ids |= {
        "RUN": "crashed-run",
        "CLAIM": claim.id,
        "AGENT": route.agent_name,
        "TRACK": route.track,
        "FLOW_RUN": _flow_run(site),
    }


def _flow_run(site: Site) -> str:
    """Return a run that waits far in the future, so that nothing takes it up."""
    deployment = site.api("GET", "/deployments/name/check-gpus/now")
    later = {"type": "SCHEDULED", "state_details": {"scheduled_time": "2099-01-01T00:00:00Z"}}
    made = site.api("POST", f"/deployments/{deployment['id']}/create_flow_run", {"state": later})
    return made["id"]


def filled(site: Site, line: str) -> str:
    words = "|".join(site.ids)
    return re.sub(rf"(?<![A-Z_])({words})(?![A-Z_])", lambda name: site.ids[name[1]], line)


@pytest.mark.parametrize("page", list(PAGES))
def test_the_commands_of_a_page_run(site: Site, page: str) -> None:
    if page == "promotion-waiting":
        site.ids["FLOW_RUN"] = _paused_run(site)
    if page == "power-loss":
        _kill_everything(site)
    if page == "claim-stuck":
        site.ids["RUN"] = "stuck-run"
    exported: list[str] = []  # a page is read in one shell
    for block in blocks(PAGES[page]):
        if block.elsewhere:
            continue
        fresh = [one for one in block.lines if one not in site.done or RUN_EACH_TIME.match(one)]
        site.done |= set(fresh)
        script = exported + [_may_say_no(filled(site, line)) for line in fresh]
        exported += [line for line in fresh if line.startswith("export ")]
        if any(not RUN_EACH_TIME.match(line) or line.startswith("make") for line in fresh):
            site.run("\n".join(script), page)
    _looked_at(site, page)


def _may_say_no(line: str) -> str:
    status = 1 if line.startswith("slm doctor") else MAY_SAY_NO.get(line)
    return line if status is None else f"{line} || test $? -eq {status}"


def _looked_at(site: Site, page: str) -> None:
    """What a page's commands must have done."""
    with open_store(site.settings().database_url) as store:
        if page == "claim-stuck":
            assert store.claims.get(site.ids["CLAIM"]).owner is None
        if page == "canary-stepped-back":
            live = [one.adapter_id for one in store.routes.list() if one.stage == "live"]
            assert live == ["adapter-1"]
        if page == "restore-from-backup":
            assert store.url.endswith("/slm")
            assert store.calls.count() == 100
    if page == "promotion-waiting":
        state = site.api("GET", f"/flow_runs/{site.ids['FLOW_RUN']}")["state"]
        assert state["type"] != "PAUSED"
    if page == "power-loss":
        assert all(part.running for part in site.stack().status())


def _paused_run(site: Site) -> str:
    run_id = _flow_run(site)
    paused = {"type": "PAUSED", "name": "Suspended"}
    site.api("POST", f"/flow_runs/{run_id}/set_state", {"state": paused, "force": True})
    return run_id


def _kill_everything(site: Site) -> None:
    parts = site.stack().status()
    assert len(parts) >= 4
    roots = [psutil.Process(part.process.pid) for part in parts]
    killed = [one for root in roots for one in (root, *root.children(recursive=True))]
    for process in killed:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(killed, timeout=30)
    assert not any(part.running for part in site.stack().status())


# ------------------------------------- what the commands say of a stack that works


def test_doctor_finds_the_stack_in_order(site: Site) -> None:
    site.run("make up", "doctor")
    fine = "packages secrets clock database prefect telemetry deployments workers".split()
    fine += ["prefect settings", "automations", "teacher", "langfuse"]
    found = _asked(site)
    deadline = time.monotonic() + 90
    # A stack that has just come up, on a busy machine, may need longer than doctor waits.
    while _odd(found, fine) and time.monotonic() < deadline:
        time.sleep(2)
        found = _asked(site)
    assert _odd(found, fine) == {}
    assert "PostgreSQL 18" in found["database"]["seen"]
    assert found["scheduler"]["health"] in ("PASS", "UNKNOWN")


def _asked(site: Site) -> dict[str, Any]:
    told = json.loads(site.run("slm doctor --json || test $? -eq 1", "doctor"))
    assert told["seconds"] < 15
    return {one["check"]: one for one in told["findings"]}


def _odd(found: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: found[name] for name in names if found[name]["health"] != "PASS"}


def test_a_run_is_resumed_and_followed_by_prefect(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (site.environ | site.variables() | {"SLM_HOME": str(site.home)}).items():
        monkeypatch.setenv(name, value)
    resumed = CliRunner().invoke(app, ["runs", "resume", "crashed", "--json"])
    assert resumed.exit_code == 0, resumed.output
    flow_run_id = json.loads(resumed.stdout)["flow_run_id"]
    flow_run = site.api("GET", f"/flow_runs/{flow_run_id}")
    assert flow_run["parameters"]["run_id"] == "crashed-run"

    OrderBook(site.home / "runs").note("crashed-run", flow_run_id=flow_run_id)
    line = {"name": "t", "level": 20, "message": "words of the flow", "flow_run_id": flow_run_id}
    site.api("POST", "/logs/", [line | {"timestamp": flow_run["created"]}])  # type: ignore[arg-type]
    monkeypatch.setattr(run_logs, "BEGIN_SECONDS", 2.0)
    shown = CliRunner().invoke(app, ["runs", "logs", "crashed-run", "--follow"])
    assert "the worker's words" in shown.stdout
    assert "INFO     words of the flow" in shown.stdout
    told = json.loads(CliRunner().invoke(app, ["runs", "show", "crashed-run", "--json"]).stdout)
    assert told["flow_run"]["id"] == flow_run_id
