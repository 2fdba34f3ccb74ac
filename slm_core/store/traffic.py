"""What became of the questions that adapters were asked, counted by quarters of an hour."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import datetime

import sqlalchemy as sa

from slm_core.records import Route, TrafficKey, TrafficOutcome, TrafficRole, utc_now
from slm_core.store import schema
from slm_core.store.engine import Database

_traffic = schema.traffic
BUCKET_MINUTES = 15
Counts = Counter[tuple[TrafficRole, TrafficOutcome]]


class Traffic:
    """Counts only: which questions they were, and the answers, are among the calls."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, counts: Mapping[TrafficKey, int], now: datetime | None = None) -> None:
        """Add ``counts`` to the present quarter of an hour.

        Raises:
            StoreUnavailable: the database did not answer; nothing was added.
        """
        now = now or utc_now()
        since = _bucket(now)
        rows = [{**key.model_dump(), "since": since, "times": n} for key, n in counts.items() if n]
        if not rows:
            return
        statement = self._database.insert(_traffic)
        statement = statement.on_conflict_do_update(
            index_elements=list(_traffic.primary_key),
            set_={"times": _traffic.c.times + statement.excluded.times},
        )
        with self._database.write() as connection:
            # In one order, so that two servers that add at once do not wait for each other.
            rows.sort(key=lambda row: [str(value) for value in row.values()])
            connection.execute(statement, rows)

    def totals(
        self, route: Route, *, version: int | None = None, since: datetime | None = None
    ) -> Counts:
        """Return how often what happened on a route.

        Args:
            route: agent, track and adapter; of any version unless one is given.
            version: only while the route was at this one.
            since: from the quarter of an hour that holds this moment.

        Raises:
            StoreUnavailable: the database did not answer.
        """
        where = [
            _traffic.c.agent_name == route.agent_name,
            _traffic.c.track == route.track,
            _traffic.c.adapter_id == route.adapter_id,
        ]
        if version is not None:
            where.append(_traffic.c.version == version)
        if since is not None:
            where.append(_traffic.c.since >= _bucket(since))
        statement = (
            sa.select(_traffic.c.role, _traffic.c.outcome, sa.func.sum(_traffic.c.times))
            .where(*where)
            .group_by(_traffic.c.role, _traffic.c.outcome)
        )
        with self._database.read() as connection:
            rows = connection.execute(statement).all()
        return Counter({(role, TrafficOutcome(outcome)): int(n) for role, outcome, n in rows})


def _bucket(moment: datetime) -> datetime:
    minute = moment.minute - moment.minute % BUCKET_MINUTES
    return moment.replace(minute=minute, second=0, microsecond=0)
