"""The shared PostgreSQL fixture: real, empty, guarded by a password; and no way out of here."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psycopg
import pytest

from slm_core.local_stack.postgres import answers, prepare_cluster

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]


def tables(url: str) -> int:
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        found = connection.execute("select count(*) from pg_tables where schemaname = 'public'")
        row = found.fetchone()
        assert row is not None
        connection.execute("create table calls (id int)")
        return row[0]


@pytest.mark.parametrize("attempt", [1, 2])
def test_each_test_has_an_empty_database_of_its_own(postgres_database: str, attempt: int) -> None:
    assert tables(postgres_database) == 0


def test_a_wrong_password_is_refused(postgres_url: str) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(postgres_url.replace("+psycopg", ""), password="wrong")


def test_a_killed_process_leaves_neither_server_nor_data() -> None:
    code = (
        "from slm_core.local_stack.postgres import throwaway_postgres as t; import time\n"
        "with t() as url: print(url, flush=True); time.sleep(60)"
    )
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    command, environ = [sys.executable, "-c", code], {"TMPDIR": str(folder)}
    with subprocess.Popen(
        command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert answers(url)
        process.kill()
    deadline = time.monotonic() + 30
    while answers(url) or list(folder.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    folder.rmdir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's PostgreSQL runs as another user")
def test_roots_data_moves_out_of_a_folder_that_only_root_may_enter(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    cluster = prepare_cluster(tmp_path / "postgres")
    try:
        assert not cluster.data.is_relative_to(tmp_path)
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700
        assert prepare_cluster(tmp_path / "postgres") == cluster
        assert cluster.data.owner() == cluster.user
    finally:
        shutil.rmtree(cluster.data.parent)


def test_nothing_but_this_machine_can_be_reached() -> None:
    with pytest.raises(RuntimeError, match="tests may only reach this machine"):
        httpx.get("http://192.0.2.1/")
