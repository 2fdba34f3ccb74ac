"""How far the clocks of others are from this machine's, in seconds; ahead is positive."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from slm_core.errors import StoreError
from slm_core.settings import Settings


def offsets(settings: Settings) -> dict[str, float]:
    """Return the offset of every clock that could be asked; SQLite and silence have none."""
    found = {"database": _database(settings), "Prefect": _prefect(settings)}
    return {name: seconds for name, seconds in found.items() if seconds is not None}


def _database(settings: Settings) -> float | None:
    if settings.database_url.startswith("sqlite"):
        return None
    import sqlalchemy as sa

    from slm_core.store.engine import Database

    database = Database(settings.database_url)
    try:
        with database.read() as connection:
            connection.scalar(sa.text("select 1"))  # connecting takes time of its own
            asked = datetime.now(UTC)
            told: datetime = connection.execute(sa.text("select clock_timestamp()")).scalar_one()
            return (told - _middle(asked)).total_seconds()
    except StoreError:
        return None
    finally:
        database.close()


def _prefect(settings: Settings) -> float | None:
    if settings.prefect_api_url is None:
        return None
    asked = datetime.now(UTC)
    try:
        told = httpx.get(f"{settings.prefect_api_url}/health", timeout=3).headers.get("date")
    except httpx.HTTPError:
        return None
    if told is None:
        return None
    # The header holds whole seconds, cut off: on average half a second too early.
    return (parsedate_to_datetime(told) - _middle(asked)).total_seconds() + 0.5


def _middle(asked: datetime) -> datetime:
    """Return the moment half-way between asking and now."""
    return asked + (datetime.now(UTC) - asked) / 2
