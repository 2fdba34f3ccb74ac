"""What each part of the stack is told: addresses, keys, and the settings that keep it honest."""

from __future__ import annotations

from pathlib import Path

from cryptography.fernet import Fernet

from slm_core.local_stack.parts import (
    Site,
    make_encryption_key,
    postgres_part,
    prefect_part,
    teacher_part,
    worker_part,
)
from slm_core.local_stack.postgres import Cluster
from slm_core.settings import Settings

CLUSTER = Cluster(data=Path("/pg/data"), bin=Path("/pg/bin"), user="nobody", password="pw")
AZURE = {"AZURE_ENDPOINT": "https://name.openai.azure.com", "AZURE_API_KEY": "k"}


def site(**environ: str) -> Site:
    return Site(
        settings=Settings.from_env({"SLM_HOME": "/home/slm"} | environ),
        project=Path("/repo"),
        home=Path("/home/slm/stack"),
        cluster=CLUSTER,
        ports={"postgres": 5001, "prefect": 5002, "teacher": 5003},
        teacher_key="key",
    )


def test_everything_listens_on_loopback_only() -> None:
    assert "listen_addresses=127.0.0.1" in postgres_part(site()).command
    server = prefect_part(site()).command
    assert server[server.index("--host") + 1] == "127.0.0.1"
    teacher = teacher_part(site(), Path("/model")).command
    assert teacher[teacher.index("--host") + 1] == "127.0.0.1"


def test_the_server_keeps_its_data_in_postgresql_and_its_leases_on_disk() -> None:
    told = prefect_part(site()).environment
    assert told["PREFECT_SERVER_DATABASE_CONNECTION_URL"] == (
        "postgresql+asyncpg://postgres:pw@127.0.0.1:5001/prefect"
    )
    assert told["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"].endswith(".filesystem")
    assert told["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert told["DO_NOT_TRACK"] == "1"


def test_a_new_prefect_database_gets_a_key_that_is_not_in_it(tmp_path: Path) -> None:
    here = site()._replace(home=tmp_path)
    older = prefect_part(here).environment
    assert "PREFECT_SERVER_ENCRYPTION_KEY" not in older, "the blocks of such a database are lost"
    make_encryption_key(here)
    key = prefect_part(here).environment["PREFECT_SERVER_ENCRYPTION_KEY"]
    assert len(Fernet(key).decrypt(Fernet(key).encrypt(b"address"))) == 7
    assert here.encryption_key.stat().st_mode & 0o777 == 0o600
    make_encryption_key(here)
    assert prefect_part(here).environment["PREFECT_SERVER_ENCRYPTION_KEY"] == key
    told = (worker_part(here, "cpu"), teacher_part(here, Path("/model")), postgres_part(here))
    assert not any(key in part.environment.values() for part in told)


def test_the_gpu_worker_takes_one_run_at_a_time() -> None:
    gpu, cpu = (worker_part(site(), pool).command for pool in ("gpu", "cpu"))
    assert gpu[gpu.index("--limit") + 1] == "1"
    assert "--limit" not in cpu


def test_a_worker_serves_every_queue_of_its_pool() -> None:
    for pool in ("gpu", "cpu"):
        command = worker_part(site(), pool).command
        assert command[command.index("--pool") + 1] == pool
        assert "--work-queue" not in command


def test_a_worker_knows_the_server_the_store_and_the_repository() -> None:
    told = worker_part(site(), "cpu").environment
    assert told["PREFECT_API_URL"] == "http://127.0.0.1:5002/api"
    assert told["SLM_DATABASE_URL"] == "postgresql+psycopg://postgres:pw@127.0.0.1:5001/slm"
    assert told["SLM_REPO"] == "/repo"
    assert told["SLM_HOME"] == "/home/slm"


def test_a_store_of_your_own_is_used() -> None:
    told = worker_part(site(SLM_DATABASE_URL="postgresql://u:p@db/mine"), "gpu").environment
    assert told["SLM_DATABASE_URL"] == "postgresql+psycopg://u:p@db/mine"


def test_without_a_teacher_the_demo_teacher_stands_in() -> None:
    here = site()
    assert here.teacher_model is not None
    assert here.teacher_model.name == "nano-teacher"
    told = worker_part(here, "gpu").environment
    assert told["AZURE_ENDPOINT"] == "http://127.0.0.1:5003"
    assert told["AZURE_API_KEY"] == "key"
    assert teacher_part(here, here.teacher_model).environment["SLM_SERVER_API_KEY"] == "key"
    assert Settings.from_env(told).teacher().model == "nano-teacher"


def test_a_configured_teacher_is_left_alone() -> None:
    here = site(**AZURE)
    assert here.teacher_model is None
    assert worker_part(here, "gpu").environment["AZURE_ENDPOINT"] == AZURE["AZURE_ENDPOINT"]


def test_no_part_inherits_another_prefect_server() -> None:
    told = worker_part(site(PREFECT_API_URL="http://other/api", PREFECT_PROFILE="x"), "gpu")
    assert told.environment["PREFECT_API_URL"] == "http://127.0.0.1:5002/api"
    assert "PREFECT_PROFILE" not in told.environment


def test_the_login_reaches_server_and_workers_alone() -> None:
    here = site(PREFECT_SERVER_API_AUTH_STRING="slm:secret")
    assert prefect_part(here).environment["PREFECT_SERVER_API_AUTH_STRING"] == "slm:secret"
    worker = worker_part(here, "cpu")
    assert worker.environment["PREFECT_API_AUTH_STRING"] == "slm:secret"
    assert "PREFECT_SERVER_API_AUTH_STRING" not in worker.environment
    assert "secret" not in " ".join((*worker.command, *prefect_part(here).command))


def test_without_a_login_none_is_asked_for() -> None:
    told = prefect_part(site()).environment | worker_part(site(), "cpu").environment
    assert not [name for name in told if "AUTH" in name]
