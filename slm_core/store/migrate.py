"""Bring a database up to this code, however many processes open it at once.

Alembic runs inside one transaction of ours, under the write lock: a process either finds the
finished tables or makes them, and a process killed half-way leaves what was there before.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import sqlalchemy as sa

from slm_core.errors import RecordNotFound, StoreError, StoreUnavailable
from slm_core.store.engine import Database
from slm_core.store.schema import REVISION, VERSION_TABLE

log = logging.getLogger(__name__)

_MIGRATIONS = Path(__file__).parent / "migrations"
_alembic_is_global = threading.Lock()


def upgrade(database: Database, *, create: bool) -> None:
    """Create or upgrade the tables of ``database``; do nothing when they are up to date.

    Raises:
        StoreUnavailable: the database does not answer or cannot be written.
        StoreError: a newer SLM Swap made the database.
        RecordNotFound: ``create`` is false, and there is no store yet.
    """
    migrate(database, REVISION, create=create)


def migrate(database: Database, to: str, *, create: bool) -> str | None:
    """Bring the tables to revision ``to``, forward or back, with all data.

    An older revision that has no place for some of it is refused; only the share, limits and
    flow run of a route's moves are left behind.

    Returns:
        The revision that they were at; None where there were none.

    Raises:
        StoreUnavailable: the database does not answer or cannot be written.
        StoreError: there is no such revision, it has no place for what is stored, or a newer
            SLM Swap made the database.
        RecordNotFound: ``create`` is false, and there is no store yet.
    """
    if create and database.path is not None:
        _create_file(database, database.path)
    with database.read() as connection:
        found = _revision(connection)
    if found == to:
        return found
    if found is None and not create:
        raise RecordNotFound(
            "There is no store here. Open it once with create=True.", store=database.url
        )
    if database.path is not None:
        database.use_wal()
    with _alembic_is_global, database.write(alone=True) as connection:
        found = _revision(connection)
        if found != to:
            _run_migrations(connection, found, to, database.url)
            log.info("store migrated url=%s from=%s to=%s", database.url, found, to)
    return found


def _create_file(database: Database, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.touch()
    except OSError as error:
        raise StoreUnavailable(
            f"The database file cannot be reached: {error}. Name a folder that can be written.",
            store=database.url,
        ) from error


def _revision(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.scalar(sa.text(f"SELECT version_num FROM {VERSION_TABLE}"))


def _run_migrations(connection: sa.Connection, found: str | None, to: str, url: str) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    newest_first = [
        script.revision for script in ScriptDirectory.from_config(config).walk_revisions()
    ]
    if found is not None and found not in newest_first:
        raise StoreError(
            f"A newer SLM Swap made this database: it is at revision {found}, and this code "
            f"knows up to {REVISION}. Upgrade SLM Swap, or name another database.",
            store=url,
        )
    if to not in newest_first:
        raise StoreError(
            f"There is no revision {to!r}. Name one of {', '.join(reversed(newest_first))}.",
            store=url,
        )
    config.attributes["connection"] = connection
    back = found is not None and newest_first.index(to) > newest_first.index(found)
    (command.downgrade if back else command.upgrade)(config, to)
