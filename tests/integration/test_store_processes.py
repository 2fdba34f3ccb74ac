"""Processes that share a store race, are killed, and may not write: nothing is lost or doubled.

Each test runs on SQLite and on PostgreSQL.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from slm_core.errors import StoreUnavailable
from slm_core.records import ClaimState
from slm_core.store import Store, open_store
from slm_core.testing.forks import CONTEXT, Fork
from slm_core.testing.records import make_call

pytestmark = [
    pytest.mark.integration,
    # Python 3.12 warns of a fork beside threads; the children use none of them.
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning"),
]

PROCESSES = 8
NOBODY = 65534


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/store.db"
    return request.getfixturevalue("postgres_database")


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with open_store(url) as store:
        yield store


def in_processes(work: Callable[[int], Any], processes: int = PROCESSES) -> list[Any]:
    """Run ``work(0)``, ``work(1)``... at the same time; return what each returned."""
    barrier = CONTEXT.Barrier(processes)
    results = CONTEXT.SimpleQueue()

    def run(number: int) -> None:
        barrier.wait(timeout=60)
        try:
            results.put((number, work(number)))
        except BaseException as error:
            results.put((number, error))

    children = [Fork(target=run, args=(n,)) for n in range(processes)]
    for child in children:
        child.start()
    found = dict(results.get() for _ in children)
    for child in children:
        child.join()
    for result in found.values():
        if isinstance(result, BaseException):
            raise result
    return [found[n] for n in range(processes)]


def killed_at_commit(work: Callable[[], Any]) -> None:
    """Run ``work`` in a process that dies by SIGKILL when it is about to commit a write."""

    def run() -> None:
        @event.listens_for(sa.Engine, "commit")
        def die(connection: sa.Connection) -> None:
            if connection.get_execution_options().get("slm_writes"):
                os.kill(os.getpid(), signal.SIGKILL)

        work()

    child = Fork(target=run)
    child.start()
    child.join(timeout=60)
    assert child.exitcode == -signal.SIGKILL


def test_eight_processes_ingest_810_calls_and_make_exactly_8_claims(url: str, store: Store) -> None:
    calls = [make_call(n) for n in range(810)]

    def ingest(number: int) -> tuple[int, int, list[str]]:
        mine = calls[number * 90 :] + calls[: number * 90]
        mine = mine[:400]  # each call comes to four or five of the processes
        random.Random(number).shuffle(mine)
        stored = duplicates = 0
        claims: list[str] = []
        with open_store(url) as own:
            for start in range(0, len(mine), 50):
                result = own.calls.add(mine[start : start + 50], lambda _: None)
                stored, duplicates = stored + result.stored, duplicates + result.duplicates
                claims += [claim.id for claim in own.claims.make()]
        return stored, duplicates, claims

    results = in_processes(ingest)
    assert sum(stored for stored, _, _ in results) == 810
    assert sum(duplicates for _, duplicates, _ in results) == PROCESSES * 400 - 810
    claimed = [claim for _, _, claims in results for claim in claims]
    assert len(claimed) == len(set(claimed)) == 8
    assert sorted(claimed) == sorted(claim.id for claim in store.claims.list())
    held = Counter(c.id for i in claimed for c in store.calls.select(claim_id=i))
    assert len(held) == 800
    assert set(held.values()) == {1}
    assert (store.calls.count(), store.calls.waiting()) == (810, 10)
    assert store.verify() == []


def test_eight_processes_race_for_each_claim_and_one_wins(url: str, store: Store) -> None:
    store.calls.add([make_call(n) for n in range(40)], lambda _: None)
    ids = [claim.id for claim in store.claims.make(size=1)]

    def take_all(number: int) -> list[str]:
        with open_store(url) as own:
            return [i for i in ids if own.claims.take(i, f"run-{number}") is not None]

    won = [i for taken in in_processes(take_all) for i in taken]
    assert sorted(won) == sorted(ids)
    assert {(c.state, c.attempts) for c in store.claims.list()} == {(ClaimState.RUNNING, 1)}


def test_eight_processes_empty_the_queue_of_claims_together(url: str, store: Store) -> None:
    store.calls.add([make_call(n) for n in range(60)], lambda _: None)
    ids = [claim.id for claim in store.claims.make(size=1)]

    def work_off(number: int) -> list[str]:
        done = []
        with open_store(url) as own:
            while (claim := own.claims.take_next(f"run-{number}")) is not None:
                done.append(own.claims.done(claim.id, f"run-{number}").id)
        return done

    done = [i for mine in in_processes(work_off) for i in mine]
    assert sorted(done) == sorted(ids)
    assert {claim.state for claim in store.claims.list()} == {ClaimState.DONE}


def test_eight_processes_open_an_empty_database_at_once(url: str) -> None:
    def open_and_add(number: int) -> int:
        with open_store(url) as own:
            return own.calls.add([make_call(number)], lambda _: None).stored

    assert in_processes(open_and_add) == [1] * PROCESSES
    with open_store(url) as store:
        assert store.calls.count() == PROCESSES


def test_a_kill_before_the_commit_loses_nothing_and_doubles_nothing(url: str, store: Store) -> None:
    calls = [make_call(n) for n in range(150)]

    def add() -> None:
        with open_store(url) as own:
            own.calls.add(calls, lambda _: None, spool=("segment", 4_096))

    killed_at_commit(add)
    assert (store.calls.count(), store.calls.spool_offset("segment")) == (0, 0)
    add()
    assert (store.calls.count(), store.calls.spool_offset("segment")) == (150, 4_096)

    def claim() -> None:
        with open_store(url) as own:
            own.claims.make()

    killed_at_commit(claim)
    assert (store.claims.list(), store.calls.waiting()) == ((), 150)
    claim()
    assert (len(store.claims.list()), store.calls.waiting()) == (1, 50)
    assert store.verify() == []


def test_a_kill_during_the_first_opening_leaves_an_empty_database(url: str) -> None:
    killed_at_commit(lambda: open_store(url))
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    assert sa.inspect(engine).get_table_names() == []
    with open_store(url) as store:
        assert store.calls.count() == 0


def test_an_ingest_that_is_killed_again_and_again_stores_each_call_once(
    url: str, store: Store
) -> None:
    calls = [make_call(n) for n in range(300)]

    def ingest() -> None:
        with open_store(url) as own:
            for start in range(own.calls.spool_offset("segment"), len(calls), 10):
                batch = calls[start : start + 10]
                own.calls.add(batch, lambda _: None, spool=("segment", start + 10))
                own.claims.make()
            own.claims.make()  # a run that was killed may have added the last calls unclaimed

    chance = random.Random(7)
    kills = 0
    exit_code = None
    while exit_code != 0:
        child = Fork(target=ingest)
        child.start()
        child.join(timeout=chance.uniform(0.02, 0.25) * (1 + kills / 10))  # it must end some time
        child.kill()
        child.join()
        exit_code = child.exitcode
        assert exit_code in (0, -signal.SIGKILL)
        kills += exit_code != 0
    assert kills > 0
    assert list(store.calls.select()) == calls
    assert store.calls.spool_offset("segment") == 300
    assert (len(store.claims.list()), store.calls.waiting()) == (3, 0)
    assert store.verify() == []


def test_a_forked_child_goes_on_with_its_parents_store(store: Store) -> None:
    store.calls.add([make_call(100)], lambda _: None)

    def add(number: int) -> int:
        return store.calls.add([make_call(number)], lambda _: None).stored

    assert in_processes(add, 4) == [1] * 4
    assert store.calls.count() == 5
    assert store.verify() == []


def test_who_may_not_write_is_told_so() -> None:
    """SQLite only; as another user when the tests run as root, whom no permission stops."""
    folder = Path(tempfile.mkdtemp(prefix="slm-store-"))
    file = folder / "store.db"
    with open_store(f"sqlite:///{file}") as store:
        store.calls.add([make_call()], lambda _: None)

    def refusal(work: Callable[[], Any]) -> str:
        def run(_number: int) -> None:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            work()

        with pytest.raises(StoreUnavailable) as caught:
            in_processes(run, 1)
        return caught.value.message

    def write() -> None:
        with open_store(f"sqlite:///{file}") as own:
            own.calls.add([make_call(1)], lambda _: None)

    try:
        file.chmod(0o444)
        folder.chmod(0o777)
        assert "The database is read-only" in refusal(write)
        folder.chmod(0o555)
        assert "read-only" in refusal(write)
        assert "Name a folder that can be written" in refusal(
            lambda: open_store(f"sqlite:///{folder}/new.db")
        )
        folder.chmod(0o000)
        assert "cannot be reached: [Errno 13]" in refusal(write)
    finally:
        folder.chmod(0o700)
        shutil.rmtree(folder)
