"""The store: all parts over one database."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from slm_core.store.approvals import Approvals
from slm_core.store.capture import Calls
from slm_core.store.claims import Claims
from slm_core.store.dataset import Datasets
from slm_core.store.decision import Decisions
from slm_core.store.engine import Database
from slm_core.store.evaluation import Evaluations
from slm_core.store.migrate import migrate, upgrade
from slm_core.store.quarantine import Quarantine
from slm_core.store.serving import Routes
from slm_core.store.spans import Spans
from slm_core.store.traffic import Traffic
from slm_core.store.training import Adapters, Runs
from slm_core.store.verify import disagreements


class Store:
    """Every record of the loop. Threads may share it; a forked process may go on using it."""

    def __init__(self, database: Database) -> None:
        """Put the parts over a database whose tables are up to date; see ``open_store``."""
        self._database = database
        self.url = database.url
        """Without the password, for messages."""
        self.calls = Calls(database)
        self.claims = Claims(database)
        self.quarantine = Quarantine(database)
        self.datasets = Datasets(database)
        self.runs = Runs(database)
        self.adapters = Adapters(database)
        self.evaluations = Evaluations(database)
        self.decisions = Decisions(database)
        self.routes = Routes(database)
        self.approvals = Approvals(database)
        self.traffic = Traffic(database)
        self.spans = Spans(database)

    def verify(self) -> list[str]:
        """Re-hash everything stored under a hash; return what disagrees, one line each."""
        return list(disagreements(self._database))

    def close(self) -> None:
        """Close the connections."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_store(url: str, *, create: bool = True) -> Store:
    """Open the store at ``url`` and bring its tables up to date.

    Any number of processes may open an empty database at once.

    Args:
        url: ``sqlite:///PATH`` or ``postgresql://USER:PASSWORD@HOST/NAME``.
        create: Make the file and the tables if there are none; otherwise their absence is an
            error.

    Raises:
        ConfigError: the URL names no database that can be used.
        StoreUnavailable: the database does not answer or cannot be written.
        StoreError: it is no store, or a newer SLM Swap made it.
        RecordNotFound: there is none, and none is to be made.
    """
    database = Database(url)
    try:
        upgrade(database, create=create)
    except BaseException:
        database.close()
        raise
    return Store(database)


def migrate_store(url: str, to: str, *, create: bool = False) -> str | None:
    """Bring the store at ``url`` to revision ``to``, forward or back, with all its data.

    It is one transaction: whoever is killed in it leaves the store as it was. An older SLM Swap
    may open the store afterwards; this one brings it forward again when it opens it.

    Args:
        url: As for ``open_store``.
        to: Such as ``0001``.
        create: Make the store if there is none.

    Returns:
        The revision that it was at.

    Raises:
        RecordNotFound: there is no store, and ``create`` is false.
        StoreError: there is no such revision, or a pruning has taken what it would need.
    """
    database = Database(url)
    try:
        return migrate(database, to, create=create)
    finally:
        database.close()
