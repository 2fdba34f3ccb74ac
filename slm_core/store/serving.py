"""Routes, which model answers for an agent and track, and every move they ever made."""

from __future__ import annotations

import sqlalchemy as sa

from slm_core.errors import StoreError
from slm_core.records import Promotion, Route, Stage, Track, utc_now
from slm_core.store import schema
from slm_core.store.encoding import from_json
from slm_core.store.engine import Database
from slm_core.store.table import packed, refuse_other_content

_routes = schema.routes
_promotions = schema.promotions


class Routes:
    """One route per agent, track and adapter; of an agent and track at most one is live."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def live(self, agent_name: str, track: Track) -> Route | None:
        """Return the live route of an agent and track; None when the teacher answers."""
        with self._database.read() as connection:
            return _find(connection, agent_name, track, _routes.c.stage == Stage.LIVE)

    def find(self, agent_name: str, track: Track, adapter_id: str) -> Route | None:
        """Return the route of an adapter for an agent and track; None while it has none."""
        with self._database.read() as connection:
            return _find(connection, agent_name, track, _routes.c.adapter_id == adapter_id)

    def list(self) -> tuple[Route, ...]:
        """Return every route, by agent, track and adapter."""
        statement = sa.select(_routes).order_by(*_routes.primary_key)
        with self._database.read() as connection:
            return tuple(Route(**row) for row in connection.execute(statement).mappings())

    def move(self, promotion: Promotion, expected_version: int | None) -> Route:
        """Move a route as ``promotion`` says, if it still is as the caller saw it.

        When an adapter goes live, the one that was live retires in the same transaction; it
        must be ``promotion.previous_adapter_id``. Which moves are legal at all is for the
        caller to know. The same promotion a second time changes nothing.

        Args:
            promotion: The move; its ``from_stage`` is None for a new route.
            expected_version: Version of the route that the caller saw; None for a new route.

        Raises:
            StoreError: the route, or who is live, has changed since the caller looked.
        """
        agent_name, track = promotion.agent_name, promotion.track
        this = _routes.c.adapter_id == promotion.adapter_id
        with self._database.write(alone=True) as connection:
            route = _find(connection, agent_name, track, this)
            if route is not None and _is_known(connection, promotion):
                return route
            _refuse_change(
                f"Route of {agent_name!r}, {track}, {promotion.adapter_id!r}",
                seen=(expected_version, promotion.from_stage),
                found=(route.version, route.stage) if route else (None, None),
            )
            if promotion.to_stage is Stage.LIVE:
                live = _find(connection, agent_name, track, _routes.c.stage == Stage.LIVE)
                _refuse_change(
                    f"Live adapter of {agent_name!r}, {track}",
                    seen=promotion.previous_adapter_id,
                    found=live.adapter_id if live else None,
                )
                if live is not None:
                    _put(self._database, connection, live, Stage.RETIRED, None)
            connection.execute(sa.insert(_promotions).values(_row(promotion)))
            started = Route(
                agent_name=agent_name,
                track=track,
                adapter_id=promotion.adapter_id,
                stage=promotion.to_stage,
                version=0,
            )
            return _put(
                self._database,
                connection,
                route or started,
                promotion.to_stage,
                promotion.share,
            )

    def history(self, agent_name: str, track: Track) -> tuple[Promotion, ...]:
        """Return every move of an agent and track, oldest first."""
        statement = (
            sa.select(_promotions.c.record)
            .where(_promotions.c.agent_name == agent_name, _promotions.c.track == track)
            .order_by(_promotions.c.number)
        )
        with self._database.read() as connection:
            return tuple(_promotion(text) for text in connection.scalars(statement))


def _find(
    connection: sa.Connection, agent_name: str, track: Track, which: sa.ColumnElement[bool]
) -> Route | None:
    statement = sa.select(_routes).where(
        _routes.c.agent_name == agent_name, _routes.c.track == track, which
    )
    row = connection.execute(statement).mappings().first()
    return None if row is None else Route(**row)


def _put(
    database: Database, connection: sa.Connection, route: Route, stage: Stage, share: float | None
) -> Route:
    """Store ``route`` at ``stage`` under its next version."""
    values = {
        "stage": stage,
        "version": route.version + 1,
        "share": share,
        "updated_at": utc_now(),
    }
    moved = route.model_copy(update=values)
    statement = database.insert(_routes).values(moved.model_dump())
    connection.execute(
        statement.on_conflict_do_update(index_elements=list(_routes.primary_key), set_=values)
    )
    return moved


def _is_known(connection: sa.Connection, promotion: Promotion) -> bool:
    """Whether this very promotion was carried out before."""
    statement = sa.select(_promotions.c.record).where(_promotions.c.id == promotion.id)
    text = connection.scalar(statement)
    if text is None:
        return False
    refuse_other_content(_promotion(text), promotion, frozenset({"created_at"}))
    return True


def _refuse_change(what: str, *, seen: object, found: object) -> None:
    if seen != found:
        raise StoreError(
            f"{what} has changed since it was looked at. Look again, and decide anew.",
            seen=seen,
            found=found,
        )


def _row(promotion: Promotion) -> dict[str, str]:
    names = {"id": promotion.id, "agent_name": promotion.agent_name, "track": promotion.track}
    return {**names, **packed(promotion)}


def _promotion(text: str) -> Promotion:
    return Promotion.model_validate(from_json(text))
