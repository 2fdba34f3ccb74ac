"""``slm doctor``: each check can fail, none fails open, and all end in time."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from slm_core.cli.doctor import machine, outside, prefect_server, records
from slm_core.cli.doctor.findings import Answer, Check, examine, passed
from slm_core.cli.doctor.table import OF_MACHINE, OF_SITE
from slm_core.errors import StoreUnavailable
from slm_core.records import Health, Quarantined, utc_now
from slm_core.settings import Settings
from slm_core.store import Store
from slm_core.testing.langfuse_receiver import LangfuseReceiver
from slm_core.testing.provider import FakeProvider
from slm_core.testing.records import make_call
from slm_core.training.orders import Order, OrderBook

ROOT = Path(__file__).parents[3]


def settings(home: Path, **more: str) -> Settings:
    return Settings.from_env({"SLM_HOME": str(home), "PATH": os.environ["PATH"]} | more)


def only(slm: Any, name: str, status: int = 0) -> dict[str, Any]:
    import json

    (found,) = json.loads(slm("doctor", "--only", name, "--json", status=status).stdout)["findings"]
    return found


def test_a_check_that_hangs_or_breaks_is_unknown_and_holds_up_nothing() -> None:
    def hang(_: Settings) -> Answer:
        time.sleep(60)
        return passed("never said")

    def break_down(_: Settings) -> Answer:
        raise ValueError("secret words")

    def refuse(_: Settings) -> Answer:
        raise StoreUnavailable("The database does not answer.")

    checks = [
        Check("hangs", hang, 0.2),
        Check("breaks", break_down),
        Check("refuses", refuse),
        Check("works", lambda _: passed("fine")),
    ]
    began = time.monotonic()
    found = {one.check: one for one in examine(checks, Settings.from_env({}))}
    assert time.monotonic() - began < 5
    assert [one.health for one in found.values()] == [Health.UNKNOWN] * 3 + [Health.PASS]
    assert found["hangs"].seen == "No answer within 0 s."
    assert found["breaks"].seen == "The check broke: ValueError"
    assert found["refuses"].seen == "The database does not answer."


def test_every_check_ends_within_fifteen_seconds_and_says_what_it_asks() -> None:
    table = (*OF_MACHINE, *OF_SITE)
    assert max(check.seconds for check in table) < 15
    assert len({check.name for check in table}) == len(table)
    assert all((check.ask.__doc__ or "").endswith("?") for check in table)


def test_the_pages_that_the_checks_name_exist() -> None:
    pages = {f"RUNBOOK.md#{line[3:]}" for line in _runbook() if line.startswith("## ")}
    for file in (ROOT / "slm_core" / "cli" / "doctor").glob("*.py"):
        for word in file.read_text().split('"'):
            if "RUNBOOK.md#" in word:
                assert word.removeprefix("see ") in pages


def _runbook() -> list[str]:
    return (ROOT / "RUNBOOK.md").read_text().splitlines()


def test_settings_that_cannot_be_read_are_a_finding(
    slm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLM_HOMME", "/tmp")
    shown = slm("doctor", status=1).stdout
    assert "did you mean SLM_HOME?" in shown
    assert "FAIL settings" in shown


def test_a_check_is_chosen_by_name_and_a_failure_is_the_status(slm: Any, slm_home: Path) -> None:
    assert only(slm, "python")["health"] == "PASS"
    assert "There is no check disc" in slm.refused("doctor", "--only", "disc", status=2)
    found = only(slm, "database", status=1)
    assert "no store at" in found["seen"]
    assert "slm store upgrade" in found["mend"][0]
    assert not slm_home.exists()


def test_another_version_of_a_pinned_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(machine.FATAL, "sqlalchemy", ("<1", "it schedules nothing"))
    health, seen, _ = machine.packages(Settings.from_env({}))
    assert health is Health.FAIL
    assert "it schedules nothing" in seen


def test_packages_that_differ_from_the_constraints_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "PROJECT", tmp_path)
    assert machine.packages(Settings.from_env({})).health is Health.WARN
    (tmp_path / "constraints.txt").write_text("# pins\nhttpx==0.1\nnot_here==1\n")
    health, seen, _ = machine.packages(Settings.from_env({}))
    assert health is Health.WARN
    assert "httpx" in seen
    assert "1 of 1" in seen, "what is not installed is not counted"
    monkeypatch.setattr(machine, "PROJECT", tmp_path / "installed")
    inside = Settings.from_env({"SLM_REPO": str(tmp_path)})  # as in an image
    assert "1 of 1" in machine.packages(inside).seen


def test_a_disk_that_is_full_or_closed_fails(
    slm_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert machine.disk(settings(slm_home)).health in (Health.PASS, Health.WARN)
    monkeypatch.setattr(machine, "FULL_BYTES", 1 << 60)
    full = machine.disk(settings(slm_home))
    assert full.health is Health.FAIL
    assert "GiB free" in full.seen
    closed = machine.disk(settings(Path("/proc/nothing")))
    assert closed.health is Health.FAIL
    assert "cannot be written" in closed.seen


def test_secrets_that_others_can_read_fail(
    slm_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = slm_home / "stack"
    stack.mkdir(parents=True)
    state = stack / "state.json"
    state.touch(mode=0o600)
    assert machine.secrets(settings(slm_home)).health is Health.PASS
    state.chmod(0o644)
    health, seen, mend = machine.secrets(settings(slm_home))
    assert health is Health.FAIL
    assert str(state) in seen
    assert mend == (f"chmod 600 {state}",)
    state.chmod(0o600)
    monkeypatch.setattr(machine, "PROJECT", tmp_path)
    compose = tmp_path / "docker" / ".env"
    compose.parent.mkdir()
    compose.touch(mode=0o644)
    assert str(compose) in machine.secrets(settings(slm_home)).seen


def test_a_repository_without_flows_fails(slm_home: Path, tmp_path: Path) -> None:
    assert machine.repository(settings(slm_home, SLM_REPO=str(ROOT))).health is Health.PASS
    lacking = machine.repository(settings(slm_home, SLM_REPO=str(tmp_path)))
    assert lacking.health is Health.FAIL
    assert "flows" in lacking.seen


def test_no_gpu_is_fine_only_where_none_is_expected(slm_home: Path) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has GPUs")
    assert machine.gpus(settings(slm_home)).health is Health.UNKNOWN
    assert machine.gpus(settings(slm_home, SLM_EXPECTED_GPUS="0")).health is Health.PASS
    assert machine.gpus(settings(slm_home, SLM_EXPECTED_GPUS="2")).health is Health.FAIL


def test_a_kernel_log_is_looked_for_where_the_settings_say(slm_home: Path, tmp_path: Path) -> None:
    missing = machine.kernel_log(settings(slm_home, SLM_KERNEL_LOG=str(tmp_path / "none")))
    assert missing.health is Health.WARN
    (tmp_path / "log").write_text("[    0.000000] Linux version 6.1\n")
    there = machine.kernel_log(settings(slm_home, SLM_KERNEL_LOG=str(tmp_path / "log")))
    assert there.health is Health.PASS


def test_a_database_of_another_revision_fails_and_is_left_as_it_is(
    store: Store, slm_home: Path
) -> None:
    assert records.database(settings(slm_home)).health is Health.PASS
    assert records.claims(settings(slm_home)).health is Health.PASS
    engine = sa.create_engine(f"sqlite:///{slm_home / 'slm.db'}")
    with engine.begin() as connection:
        connection.execute(sa.text("update slm_store_version set version_num = 'old'"))
    health, seen, mend = records.database(settings(slm_home))
    assert health is Health.FAIL
    assert "revision old" in seen
    assert mend[0] == "slm store upgrade"
    assert records.claims(settings(slm_home)).health is Health.UNKNOWN
    with engine.begin() as connection:
        assert connection.scalar(sa.text("select version_num from slm_store_version")) == "old"
    engine.dispose()


def test_a_database_that_cannot_be_written_fails(store: Store, slm_home: Path) -> None:
    url = f"sqlite:///{slm_home / 'slm.db'}?mode=ro"
    health, seen, _ = records.database(settings(slm_home, SLM_DATABASE_URL=url))
    assert health is Health.FAIL
    assert "read-only" in seen


def test_sqlite_beside_a_server_is_a_warning(store: Store, slm_home: Path) -> None:
    beside = settings(slm_home, PREFECT_API_URL="http://127.0.0.1:1/api")
    assert "one process at a time" in records.database(beside).seen


def test_a_spool_that_nobody_drains_warns_and_then_fails(store: Store, slm_home: Path) -> None:
    spool = slm_home / "spool"
    assert records.spool(settings(slm_home)).health is Health.PASS
    spool.mkdir()
    file = spool / "calls.jsonl"
    file.write_text("{}\n")
    assert records.spool(settings(slm_home)).health is Health.PASS
    for minutes, health in ((20, Health.WARN), (61, Health.FAIL)):
        then = (utc_now() - timedelta(minutes=minutes)).timestamp()
        os.utime(file, (then, then))
        assert records.spool(settings(slm_home)).health is health


def test_calls_of_a_living_client_are_counted_as_waiting(store: Store, slm_home: Path) -> None:
    from slm_core.capture import WorkflowTracer

    with WorkflowTracer(spool_dir=slm_home / "spool") as tracer:
        tracer.capture_call(
            agent_type="sub-agent",
            agent_name="desk",
            model_used="gpt-4o",
            user_query="hello",
            assistant_response="hello",
        )
        seen = records.spool(settings(slm_home)).seen
    assert seen.startswith("1 calls and 0 files wait")


def test_a_quarantine_that_grows_warns(store: Store, slm_home: Path) -> None:
    row = Quarantined(
        source="a:1", reason="not JSON", raw="{", created_at=datetime(2026, 1, 1, tzinfo=UTC)
    )
    store.quarantine.add([row])
    assert records.quarantine(settings(slm_home)).health is Health.PASS
    store.quarantine.add([row.model_copy(update={"source": "a:2", "created_at": utc_now()})])
    health, seen, _ = records.quarantine(settings(slm_home))
    assert health is Health.WARN
    assert "1 since yesterday" in seen


def test_a_claim_of_a_crashed_run_warns(store: Store, slm_home: Path) -> None:
    store.calls.add([make_call(number) for number in range(2)], lambda call: None)
    (claim,) = store.claims.make(2)
    store.claims.take(claim.id, "run-1")
    book = OrderBook(slm_home / "runs")
    book.write(Order(run_id="run-1", flow="retrain", spec={}))
    with book.hold("run-1"):
        assert records.claims(settings(slm_home)).health is Health.PASS
    health, seen, mend = records.claims(settings(slm_home))
    assert health is Health.WARN
    assert "1 held by a run that is not at work" in seen
    assert "slm runs show run-1" in mend


@pytest.mark.parametrize("host", ["elsewhere", None])
def test_a_claim_held_from_elsewhere_is_told_after_a_day(
    store: Store, slm_home: Path, monkeypatch: pytest.MonkeyPatch, host: str | None
) -> None:
    store.calls.add([make_call(number) for number in range(2)], lambda call: None)
    (claim,) = store.claims.make(2)
    store.claims.take(claim.id, "run-1")
    if host is not None:
        book = OrderBook(slm_home / "runs")
        book.write(Order(run_id="run-1", flow="retrain", spec={}, host=host))
    assert records.claims(settings(slm_home)).health is Health.PASS
    monkeypatch.setattr(records, "STUCK_CLAIM", timedelta(0))
    health, seen, mend = records.claims(settings(slm_home))
    assert health is Health.WARN
    assert "1 held for more than a day by a run unknown here or elsewhere" in seen
    assert "slm runs show run-1" in mend


def test_without_a_server_nothing_of_prefect_passes(slm_home: Path) -> None:
    checks = [check for check in OF_SITE if check.ask.__module__ == prefect_server.__name__]
    assert len(checks) == 7
    for given in ({}, {"PREFECT_API_URL": "http://127.0.0.1:1/api"}):
        found = examine(checks, settings(slm_home, **given))
        assert {one.health for one in found} <= {Health.FAIL, Health.UNKNOWN, Health.WARN}
    assert found[0].health is Health.FAIL
    assert "does not answer" in found[0].seen


def test_a_teacher_that_is_away_or_refuses_fails(slm_home: Path) -> None:
    assert outside.teacher(settings(slm_home)).health is Health.WARN
    half = outside.teacher(settings(slm_home, AZURE_ENDPOINT="http://127.0.0.1:1"))
    assert half.health is Health.FAIL
    assert "AZURE_API_KEY is not set" in half.seen
    key = {"AZURE_API_KEY": "hunter2"}
    away = outside.teacher(settings(slm_home, AZURE_ENDPOINT="http://127.0.0.1:1", **key))
    assert away.health is Health.FAIL
    assert "hunter2" not in away.seen
    with FakeProvider({}) as provider:
        there = outside.teacher(settings(slm_home, AZURE_ENDPOINT=provider.base_url, **key))
    assert there.health is Health.PASS


def test_langfuse_is_asked_as_a_run_would(slm_home: Path) -> None:
    assert outside.langfuse(settings(slm_home)).health is Health.WARN
    assert outside.langfuse(settings(slm_home, SLM_REQUIRE_LANGFUSE="1")).health is Health.FAIL
    with LangfuseReceiver() as receiver:
        keys = {
            "LANGFUSE_PUBLIC_KEY": receiver.public_key,
            "LANGFUSE_SECRET_KEY": receiver.secret_key,
            "LANGFUSE_BASE_URL": receiver.base_url,
        }
        assert outside.langfuse(settings(slm_home, **keys)).health is Health.PASS
        wrong = keys | {"LANGFUSE_SECRET_KEY": "sk-wrong"}
        refused = outside.langfuse(settings(slm_home, **wrong))
    assert refused.health is Health.FAIL
    assert "sk-wrong" not in refused.seen
