"""Stores with data in them go forward and back between revisions, and a kill changes nothing.

Each test runs on SQLite and on PostgreSQL.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from slm_core.errors import StoreError
from slm_core.records import (
    Approval,
    Call,
    Message,
    Promotion,
    Quarantined,
    Stage,
    TrafficKey,
    TrafficLimits,
    TrafficOutcome,
    sha256_hex,
)
from slm_core.store import Store, migrate_store, open_store, schema
from slm_core.store.claims import id_of
from slm_core.store.encoding import from_json
from slm_core.store.engine import Database
from slm_core.store.packing import pack
from slm_core.testing.forks import CONTEXT, Fork
from slm_core.testing.records import make_call, make_dataset, make_evaluation, make_training_run

pytestmark = [
    pytest.mark.integration,
    # Python 3.12 warns of a fork beside threads; the children use none of them.
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning"),
]

Contents = dict[str, list[tuple[Any, ...]]]

END_OF_JULY = datetime(2026, 7, 31, 23, 59, 59, 999_999, tzinfo=UTC)
CALLS = [
    make_call(
        n,
        agent_name=f"agent-{n % 3}",
        seconds=n / 7,
        success=n % 4 > 0,
        cost_nanousd=None if n % 5 == 0 else n,
        created_at=END_OF_JULY + timedelta(microseconds=n // 20),
    )
    for n in range(40)
] + [
    make_call(50, id="nul \x00", agent_name="\ud83d", response="\x00\\u0000", error="\\"),
    make_call(51, messages=(Message(role="user", content="æøå 漢字"),), prompt_tokens=None),
    make_call(52, seconds=0.0, idempotency_key="k", source="slm", created_at=END_OF_JULY),
]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/store.db"
    return request.getfixturevalue("postgres_database")


@pytest.fixture
def first_store(url: str) -> str:
    """URL of a store as revision 0001 left it, with calls, a claim and records."""
    migrate_store(url, "0001", create=True)
    claimed = [call.id for call in CALLS if objection(call) is None][:10]
    database = Database(url)
    with database.write() as connection:
        claim = schema.claims.insert().values(
            id=id_of(claimed), size=10, state="new", attempts=0, created_at=END_OF_JULY
        )
        connection.execute(claim)
        for call in CALLS:
            one = pack(call, objection(call))
            for sha256, body in one.bodies.items():
                connection.execute(
                    sa.text(
                        "INSERT INTO call_bodies (sha256, body) VALUES (:sha256, :body) "
                        "ON CONFLICT DO NOTHING"
                    ),
                    {"sha256": sha256, "body": body},
                )
            row = {name: value for name, value in one.row.items() if name != "month"}
            row["claim_id"] = id_of(claimed) if call.id in claimed else None
            # The columns that 0001 has, with the types that say how values are written.
            columns = [sa.column(name, schema.calls.c[name].type) for name in row]
            old_calls = sa.table("calls", *columns)
            connection.execute(sa.insert(old_calls).values(row))
    with Store(database) as store:  # past ``open_store``, which would upgrade it
        store.quarantine.add([Quarantined(source="s:0", reason="r", raw="{")])
        store.datasets.save(make_dataset())
        store.runs.save(make_training_run())
        store.evaluations.save(make_evaluation())
    return url


def objection(call: Call) -> str | None:
    return None if call.success else "call failed \x00"


def contents(url: str) -> Contents:
    """Return every row of every table as the database tells it."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    tables = sa.MetaData()
    tables.reflect(engine)
    with engine.connect() as connection:
        return {
            table.name: sorted(map(tuple, connection.execute(sa.select(table))), key=repr)
            for table in tables.sorted_tables
        }


def shape(url: str) -> dict[str, Any]:
    """Return columns, keys and indexes of every table."""
    found = sa.inspect(sa.create_engine(url, poolclass=sa.NullPool))
    return {
        name: (
            [(c["name"], str(c["type"]), c["nullable"]) for c in found.get_columns(name)],
            found.get_pk_constraint(name),
            sorted(map(str, found.get_foreign_keys(name))),
            sorted(map(str, found.get_unique_constraints(name))),
            sorted(_said(index) for index in found.get_indexes(name)),
        )
        for name in sorted(found.get_table_names())
    }


def _said(index: Any) -> str:
    options = {name: str(value) for name, value in index.pop("dialect_options", {}).items()}
    return f"{index} {options}"


def check_upgraded(url: str) -> None:
    with open_store(url, create=False) as store:
        assert list(store.calls.select()) == sorted(CALLS, key=lambda call: call.id)
        (claim,) = store.claims.list()
        assert [call.id for call in store.calls.select(claim_id=claim.id)] == [
            call.id for call in CALLS if call.success
        ][:10]
        assert store.calls.count() == 43
        assert store.calls.waiting() == 33 - 10
        assert store.calls.unusable() == {"call failed \x00": 10}
        assert sum(one.calls for one in store.calls.stats()) == 43
        assert store.quarantine.counts() == {"r": 1}
        assert [one.id for one in store.datasets.list()] == [make_dataset().id]
        assert store.verify() == []
        # It goes on from there.
        assert store.calls.add([CALLS[0], CALLS[42]], objection).duplicates == 2


def test_every_record_goes_up_and_down_and_up_again(first_store: str) -> None:
    at_first = contents(first_store)
    check_upgraded(first_store)
    upgraded = contents(first_store)
    assert migrate_store(first_store, "0001") == schema.REVISION
    assert contents(first_store) == at_first
    assert migrate_store(first_store, schema.REVISION) == "0001"
    assert contents(first_store) == upgraded
    check_upgraded(first_store)


def test_going_back_makes_the_tables_that_0001_made(first_store: str) -> None:
    as_made = shape(first_store)
    migrate_store(first_store, "0002")
    assert shape(first_store) != as_made
    migrate_store(first_store, "0001")
    assert shape(first_store) == as_made


def test_an_empty_store_goes_up_and_down(url: str) -> None:
    open_store(url).close()
    migrate_store(url, "0001")
    assert set(map(len, contents(url).values())) == {0, 1}  # the version, and nothing else
    with open_store(url) as store:
        assert store.calls.stats() == []
        assert store.calls.waiting() == 0


def test_a_call_of_a_new_month_finds_its_place_after_an_upgrade(first_store: str) -> None:
    late = make_call(60, created_at=datetime(2027, 1, 1, tzinfo=UTC))
    with open_store(first_store) as store:
        store.calls.add([late], objection)
        assert store.calls.get(late.id) == late
        assert store.verify() == []


KILLS = ("INSERT INTO call_bodies", "DROP TABLE old_calls", "COMMIT")


@pytest.mark.parametrize(
    ("way", "moment"), list(itertools.product([("0001", "0002"), ("0002", "0001")], KILLS))
)
def test_a_kill_on_the_way_leaves_the_store_as_it_was(
    first_store: str, way: tuple[str, str], moment: str
) -> None:
    before, to = way
    migrate_store(first_store, before)
    was = contents(first_store)
    killed_at(moment, lambda: migrate_store(first_store, to))
    assert contents(first_store) == was
    migrate_store(first_store, to)
    check_upgraded(first_store)


def killed_at(moment: str, work: Callable[[], Any]) -> None:
    """Run ``work`` in a process that dies by SIGKILL before the first such statement."""

    def run() -> None:
        def die() -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        @event.listens_for(sa.Engine, "before_cursor_execute")
        def before(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
            if statement.lstrip().startswith(moment):
                die()

        @event.listens_for(sa.Engine, "commit")
        def commit(connection: sa.Connection) -> None:
            if moment == "COMMIT" and connection.get_execution_options().get("slm_writes"):
                die()

        work()

    child = Fork(target=run)
    child.start()
    child.join(timeout=120)
    assert child.exitcode == -signal.SIGKILL


def test_four_processes_upgrade_at_once(first_store: str) -> None:
    barrier = CONTEXT.Barrier(4)

    def upgrade() -> None:
        barrier.wait(timeout=60)
        open_store(first_store).close()

    children = [Fork(target=upgrade) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(timeout=120)
    assert [child.exitcode for child in children] == [0] * 4
    check_upgraded(first_store)


def test_no_way_back_once_texts_are_pruned(first_store: str) -> None:
    with open_store(first_store) as store:
        pruned = sum(one.pruned for one in store.calls.prune(202609))
        assert pruned == 10
    was = contents(first_store)
    with pytest.raises(StoreError, match="10 calls have no texts any more, because they were pr"):
        migrate_store(first_store, "0001")
    assert contents(first_store) == was


def test_moves_go_back_in_the_form_that_older_code_reads(url: str) -> None:
    named = {"agent_name": "desk \ud83d", "track": "toolcall", "adapter_id": "adapter-1"}
    move = Promotion(
        id="promotion-1",
        from_stage=None,
        to_stage=Stage.CANARY,
        previous_adapter_id=None,
        decision_id="decision-1",
        who="ann",
        reason="æøå",
        **named,  # type: ignore[arg-type]
    )
    newer = {"share": 0.2, "limits": TrafficLimits(), "run_id": "run-1"}
    with open_store(url) as store:
        route = store.routes.move(move.model_copy(update=newer), None)
        store.approvals.save(
            Approval(
                id="approval-1",
                run_id="run-1",
                adapter_id="adapter-1",
                decision_id="decision-1",
                moves=(),
                share=0.2,
                limits=TrafficLimits(),
                expires_at=END_OF_JULY,
            )
        )
        key = TrafficKey(**named, version=1, role="answer", outcome=TrafficOutcome.ANSWERED)  # type: ignore[arg-type]
        store.traffic.add({key: 3})
    for table in ("approvals", "traffic"):
        was = contents(url)
        with pytest.raises(StoreError, match=f"1 rows in {table}") as caught:
            migrate_store(url, "0001")
        assert contents(url) == was
        with sa.create_engine(url, poolclass=sa.NullPool).begin() as connection:
            connection.execute(sa.text(caught.value.message.rpartition("for example: ")[2]))
    migrate_store(url, "0001")
    ((*_, sha256, record),) = contents(url)["promotions"]
    assert sha256 == sha256_hex(record)
    assert set(from_json(record)) == {
        *("id", "agent_name", "track", "adapter_id", "from_stage", "to_stage"),
        *("previous_adapter_id", "decision_id", "who", "reason", "created_at"),
    }
    with open_store(url) as store:
        assert store.routes.history(move.agent_name, "toolcall") == (move,)
        assert store.routes.list() == (route.model_copy(update={"share": None}),)
        assert store.verify() == []


@pytest.mark.parametrize(
    ("column", "value"), [("seconds", "1e300"), ("cost_nanousd", "9000000000000000000")]
)
def test_a_call_that_no_sum_can_hold_is_named(first_store: str, column: str, value: str) -> None:
    with sa.create_engine(first_store, poolclass=sa.NullPool).begin() as connection:
        where = f"id = '{CALLS[7].id}'"
        connection.execute(sa.text(f"UPDATE calls SET {column} = {value} WHERE {where}"))
    was = contents(first_store)
    with pytest.raises(StoreError, match=f"1 calls, the first '{CALLS[7].id}', have {column}") as e:
        open_store(first_store)
    assert contents(first_store) == was
    with sa.create_engine(first_store, poolclass=sa.NullPool).begin() as connection:
        connection.execute(sa.text(e.value.message.rpartition("for example: ")[2]))
    with open_store(first_store) as store:
        assert store.verify() == []


def test_an_unknown_revision_is_refused(first_store: str) -> None:
    with pytest.raises(StoreError, match=r"There is no revision '0815'\. Name one of 0001, 0002"):
        migrate_store(first_store, "0815")
