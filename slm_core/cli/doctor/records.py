"""Checks of the store and of what waits to get into it: database, spool, quarantine, claims."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from slm_core.cli.doctor.findings import Answer, failed, passed, unknown, warned
from slm_core.errors import StoreError
from slm_core.settings import Settings

if TYPE_CHECKING:
    import sqlalchemy as sa

    from slm_core.records import Claim
    from slm_core.store import Store
    from slm_core.store.engine import Database

SLOW_SECONDS = 0.2
"""A database that takes longer for the least of questions is loaded, or far away."""
CONNECTIONS_SHARE = 0.8
LATE_SPOOL = timedelta(minutes=15)
"""Three turns of `ingest/spool`."""
DEAD_SPOOL = timedelta(hours=1)
STUCK_CLAIM = timedelta(hours=24)
_NO_STORE = "The store cannot be used as it is; the check `database` says why."
_COUNTED = 20_000
"""Calls of one spool file that are counted; more are told as so many."""


def database(settings: Settings) -> Answer:
    """Is the store there, of this code's revision, writable and quick?"""
    import sqlalchemy as sa

    from slm_core.store import schema
    from slm_core.store.engine import Database

    database = Database(settings.database_url)
    page = "see RUNBOOK.md#store-down"
    try:
        if database.path is not None and not database.path.is_file():
            return failed(
                f"There is no store at {database.url}.",
                "check SLM_DATABASE_URL and SLM_HOME; a first store is made by: slm store upgrade",
            )
        with database.read() as connection:
            began = time.monotonic()
            connection.scalar(sa.text("select 1"))
            seconds = time.monotonic() - began
            if database.path is None:
                server = f"PostgreSQL {connection.scalar(sa.text('show server_version'))}"
                used, most = _connections(connection)
            else:
                server = f"SQLite {connection.scalar(sa.text('select sqlite_version()'))}"
                used, most = 0, 0
        revision = _revision(database)
        if revision != schema.REVISION:
            return failed(
                f"{database.url} is at revision {revision}, and this code needs {schema.REVISION}.",
                "slm store upgrade",
                "if the database is the newer one: upgrade SLM Swap",
            )
        nothing = sa.update(schema.claims).where(sa.false()).values(attempts=0)
        with database.write() as connection:
            connection.execute(nothing)
    except StoreError as error:
        return failed(str(error), page)
    finally:
        database.close()
    seen = (
        f"{database.url}: {server}, revision {revision}, writable, {seconds * 1000:.1f} ms for a "
        "question" + (f", {used} of {most} connections in use." if most else ".")
    )
    if used > CONNECTIONS_SHARE * most:
        return warned(seen, "close idle clients, or raise max_connections", page)
    if seconds > SLOW_SECONDS:
        return warned(seen, "look for load or a long transaction on the server", page)
    if database.path is not None and settings.prefect_api_url is not None:
        return warned(
            f"{seen} SQLite is for one process at a time, and here are a server and its workers.",
            "name a PostgreSQL in SLM_DATABASE_URL",
        )
    return passed(seen)


def _revision(database: Database) -> str | None:
    """Return the revision of the store's tables; None where there are none."""
    import sqlalchemy as sa

    from slm_core.store.schema import VERSION_TABLE

    with database.read() as connection:
        if not sa.inspect(connection).has_table(VERSION_TABLE):
            return None
        return connection.scalar(sa.text(f"select version_num from {VERSION_TABLE}"))


def _connections(connection: sa.Connection) -> tuple[int, int]:
    """Return how many connections of a PostgreSQL server are in use, and how many it takes."""
    import sqlalchemy as sa

    used = connection.scalar(sa.text("select count(*) from pg_stat_activity"))
    most = connection.scalar(sa.text("show max_connections"))
    return int(used or 0), int(most or 0)


def spool(settings: Settings) -> Answer:
    """Do captured calls get out of the spool folder in time?"""
    folder = settings.spool_dir
    mend = ("slm calls drain", "prefect deployment run ingest/spool")
    if not folder.is_dir():
        return passed(f"No calls wait: there is no folder {folder} yet.")
    with _store(settings) as store:
        if store is None:
            return unknown("How much of the spool was read is in the store, which cannot be used.")
        waiting, oldest = 0, None
        for path in sorted(folder.glob("*.seg")):
            count, first = _unread(path, store.calls.spool_offset(path.name))
            waiting += count
            oldest = min(filter(None, (oldest, first)), default=None)
    files = list(folder.glob("*.jsonl"))
    for path in files:
        written = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        oldest = min(written, oldest or written)
    seen = f"{waiting} calls and {len(files)} files wait in {folder}"
    if oldest is None:
        return passed(f"{seen}.")
    late = datetime.now(UTC) - oldest
    seen = f"{seen}, the oldest for {_minutes(late)}."
    if late > DEAD_SPOOL:
        return failed(f"{seen} ingest/spool does not run, or fails.", *mend)
    return warned(seen, *mend) if late > LATE_SPOOL else passed(seen)


def _unread(path: Path, offset: int) -> tuple[int, datetime | None]:
    """Return how many calls of a segment are not in the store yet, and when the first was made."""
    from pydantic_core import from_json

    from slm_core.capture.segment import read_frames

    try:
        frames = list(islice(read_frames(path, offset, finished=False), _COUNTED))
        written = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except FileNotFoundError:  # drained while we looked
        return 0, None
    if not frames:
        return 0, None
    try:
        return len(frames), datetime.fromisoformat(from_json(frames[0].body)["created_at"])
    except (ValueError, KeyError, TypeError):  # damaged: the drain will say so
        return len(frames), written


def quarantine(settings: Settings) -> Answer:
    """Were rows set aside, and are there new ones?"""
    with _store(settings) as store:
        if store is None:
            return unknown(_NO_STORE)
        counts = store.quarantine.counts()
        calls = store.calls.count()
        newest = [row.created_at for row in store.quarantine.list()] if counts else []
    total = sum(counts.values())
    if not total:
        return passed(f"The quarantine is empty; {calls} calls are stored.")
    day_ago = datetime.now(UTC) - timedelta(days=1)
    fresh = sum(1 for when in newest if when > day_ago)
    reason, most = next(iter(counts.items()))
    seen = (
        f"{total} rows in quarantine beside {calls} calls, {fresh} since yesterday; most often "
        f"({most}): {reason}."
    )
    mend = ("slm calls quarantine --limit 20", "see RUNBOOK.md#quarantine-growing")
    return warned(seen, *mend) if fresh else passed(seen)


def claims(settings: Settings) -> Answer:
    """Is any claim held by a run that is not at work, or waiting for a run that never came?"""
    from slm_core.records import ClaimState
    from slm_core.training.orders import OrderBook

    book = OrderBook(settings.home / "runs")
    with _store(settings) as store:
        if store is None:
            return unknown(_NO_STORE)
        found = store.claims.list()
        waiting = store.calls.waiting()
    before = datetime.now(UTC) - STUCK_CLAIM
    stuck: list[Claim] = []
    unseen: list[Claim] = []
    for claim in found:
        if claim.state is not ClaimState.RUNNING:
            continue
        order = book.find(claim.owner) if claim.owner else None
        if order is not None and book.at_work(order.run_id):
            continue
        if order is not None and order.host == socket.gethostname():
            stuck.append(claim)
        # Whether a run of another machine is at work cannot be seen from here.
        elif claim.created_at < before:
            unseen.append(claim)
    open_states = (ClaimState.NEW, ClaimState.SUBMITTED, ClaimState.RELEASED)
    left = [c for c in found if c.state in open_states and c.created_at < before]
    mend: list[str] = []
    seen = f"{len(found)} claims, {waiting} of {settings.retrain_threshold} calls for the next"
    if stuck:
        seen += f"; {len(stuck)} held by a run that is not at work"
    if unseen:
        seen += f"; {len(unseen)} held for more than a day by a run unknown here or elsewhere"
    if stuck or unseen:
        mend += [f"slm runs show {claim.owner}" for claim in (*stuck, *unseen)[:3]]
        mend.append("see RUNBOOK.md#claim-stuck")
    if left:
        seen += f"; {len(left)} waiting for a run for more than a day"
        mend += ["prefect deployment run retrain/nightly", "see RUNBOOK.md#threshold-without-run"]
    return warned(f"{seen}.", *mend) if mend else passed(f"{seen}.")


@contextmanager
def _store(settings: Settings) -> Iterator[Store | None]:
    """Open the store without making or upgrading one; None when it cannot be used as it is."""
    from slm_core.store import Store
    from slm_core.store.engine import Database
    from slm_core.store.schema import REVISION

    database = Database(settings.database_url)
    try:
        current = _revision(database) == REVISION
    except StoreError:
        current = False
    with Store(database) as store:
        yield store if current else None


def _minutes(late: timedelta) -> str:
    from slm_core.cli.terminal import span

    return span(late.total_seconds())
