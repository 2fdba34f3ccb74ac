"""Claims: each hundred usable calls belongs to exactly one retrain, whoever races for it.

    new ──▶ submitted ──▶ running ──▶ done
      └──────────────────▶  ▲ │
                            │ ▼
                         released

A claim is made in the database, not by counting events, and a run takes it by
compare-and-set: of any number of runs one gets it. A run that is resumed finds its own claim
again, because the owner is the run's id.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from slm_core.errors import RecordNotFound, StoreError
from slm_core.records import Claim, ClaimState, content_id
from slm_core.store import schema, totals
from slm_core.store.engine import Database

log = logging.getLogger(__name__)

_claims = schema.claims
_calls = schema.calls

COMES_FROM: dict[ClaimState, tuple[ClaimState, ...]] = {
    ClaimState.NEW: (),
    ClaimState.SUBMITTED: (ClaimState.NEW,),
    ClaimState.RUNNING: (ClaimState.NEW, ClaimState.SUBMITTED, ClaimState.RELEASED),
    ClaimState.DONE: (ClaimState.RUNNING,),
    ClaimState.RELEASED: (ClaimState.RUNNING,),
}
"""The legal moves: to each state, from which."""


class Claims:
    """Batches of usable calls, and who holds them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def make(self, size: int = 100) -> tuple[Claim, ...]:
        """Make as many full claims as there are usable calls that no claim holds.

        Calls are taken in the order of capture. Two processes never claim the same call.

        Raises:
            StoreError: ``size`` is less than 1.
        """
        if size < 1:
            raise StoreError("A claim needs at least one call.", size=size)
        free = (
            sa.select(_calls.c.id)
            .where(schema.waiting)
            .order_by(_calls.c.created_at, _calls.c.id)
            .limit(size)
        )
        made: list[Claim] = []
        claimed = Counter[totals.Group]()
        with self._database.write(alone=True) as connection:
            while len(ids := connection.scalars(free).all()) == size:
                claim = Claim(id=id_of(ids), size=size, state=ClaimState.NEW)
                connection.execute(sa.insert(_claims).values(claim.model_dump()))
                held = sa.update(_calls).where(_calls.c.id.in_(free)).values(claim_id=claim.id)
                groups = connection.execute(held.returning(*_calls.c[totals.GROUP]))
                claimed.update(tuple(group) for group in groups)
                made.append(claim)
            if made:
                totals.take_from_waiting(connection, claimed)
        for claim in made:
            log.info("claim made id=%s calls=%d", claim.id, size)
        return tuple(made)

    def submitted(self, claim_id: str) -> bool:
        """Note that a run was started for a new claim; False if the claim is already further.

        Raises:
            RecordNotFound: there is no such claim.
        """
        with self._database.write() as connection:
            moved = _move(connection, claim_id, ClaimState.SUBMITTED)
            if moved is None:
                _get(connection, claim_id)
        return moved is not None

    def take(self, claim_id: str, owner: str) -> Claim | None:
        """Let ``owner`` run the claim; None when another run has it or it is done.

        A claim that ``owner`` runs already is returned again, without a further attempt.

        Raises:
            RecordNotFound: there is no such claim.
        """
        with self._database.write() as connection:
            taken = _take(connection, claim_id, owner)
            if taken is not None:
                return taken
            claim = _get(connection, claim_id)
        mine = claim.state is ClaimState.RUNNING and claim.owner == owner
        return claim if mine else None

    def take_next(self, owner: str) -> Claim | None:
        """Let ``owner`` run the oldest claim that is free; None when none is.

        An ``owner`` that runs a claim already gets that one again.
        """
        oldest = sa.select(_claims).order_by(_claims.c.number).limit(1)
        held = oldest.where(_claims.c.state == ClaimState.RUNNING, _claims.c.owner == owner)
        free = oldest.where(_claims.c.state.in_(COMES_FROM[ClaimState.RUNNING]))
        with self._database.write() as connection:
            if (row := connection.execute(held).mappings().first()) is not None:
                return _claim(row)
            # Skip what another transaction is taking at this moment (PostgreSQL only).
            row = connection.execute(free.with_for_update(skip_locked=True)).mappings().first()
            return None if row is None else _take(connection, row["id"], owner)

    def release(self, claim_id: str, owner: str) -> Claim:
        """Give the claim back, so that another run can take it. Releasing twice is no error.

        Raises:
            RecordNotFound: there is no such claim.
            StoreError: ``owner`` does not run it.
        """
        return self._leave(claim_id, owner, ClaimState.RELEASED, left_with=None)

    def force_release(self, claim_id: str, who: str, *, owner: str | None = None) -> Claim:
        """Give a claim back for a run that cannot do it itself any more.

        Whoever calls has made sure that the run will never go on: it would train on the claim a
        second time.

        Args:
            claim_id: which claim.
            who: takes it away, for the log.
            owner: take it from this run only; by default from whichever holds it.

        Raises:
            RecordNotFound: there is no such claim.
            StoreError: no run holds it, or another than ``owner`` does.
        """
        with self._database.write() as connection:
            before = _get(connection, claim_id)
            held = _claims.c.owner == (before.owner if owner is None else owner)
            moved = _move(connection, claim_id, ClaimState.RELEASED, held, owner=None)
        if moved is None:
            raise StoreError(
                f"Claim {claim_id!r} cannot be given back: it is {before.state.value}, held by "
                f"{before.owner!r}. Only a claim that a run holds can be taken from that run.",
                owner=owner,
            )
        log.warning("claim taken from its run id=%s run=%s by=%s", claim_id, before.owner, who)
        return moved

    def done(self, claim_id: str, owner: str) -> Claim:
        """Close the claim for good. Closing it twice is no error.

        Raises:
            RecordNotFound: there is no such claim.
            StoreError: ``owner`` does not run it.
        """
        return self._leave(claim_id, owner, ClaimState.DONE, left_with=owner)

    def get(self, claim_id: str) -> Claim:
        """Return the claim of that id.

        Raises:
            RecordNotFound: there is none.
        """
        with self._database.read() as connection:
            return _get(connection, claim_id)

    def list(self, state: ClaimState | None = None) -> tuple[Claim, ...]:
        """Return the claims, oldest first, of one state or of all."""
        statement = sa.select(_claims).order_by(_claims.c.number)
        if state is not None:
            statement = statement.where(_claims.c.state == state)
        with self._database.read() as connection:
            return tuple(_claim(row) for row in connection.execute(statement).mappings())

    def _leave(self, claim_id: str, owner: str, to: ClaimState, *, left_with: str | None) -> Claim:
        with self._database.write() as connection:
            held = _claims.c.owner == owner
            moved = _move(connection, claim_id, to, held, owner=left_with)
            claim = moved or _get(connection, claim_id)
        if moved is None and (claim.state, claim.owner) != (to, left_with):
            raise StoreError(
                f"Claim {claim_id!r} cannot become {to.value}: it is {claim.state.value}, held "
                f"by {claim.owner!r}. Only the run that holds a claim may give it up.",
                owner=owner,
            )
        return claim


def id_of(call_ids: Sequence[str]) -> str:
    """Return the id of the claim on these calls, in the order of capture."""
    return content_id("claim", list(call_ids))


def _take(connection: sa.Connection, claim_id: str, owner: str) -> Claim | None:
    attempts = _claims.c.attempts + 1
    return _move(connection, claim_id, ClaimState.RUNNING, owner=owner, attempts=attempts)


def _move(
    connection: sa.Connection,
    claim_id: str,
    to: ClaimState,
    *where: sa.ColumnElement[bool],
    **values: Any,
) -> Claim | None:
    """Compare and set: return the claim as it is now, or None when the move is not legal."""
    statement = (
        sa.update(_claims)
        .where(_claims.c.id == claim_id, _claims.c.state.in_(COMES_FROM[to]), *where)
        .values(state=to, **values)
        .returning(_claims)
    )
    row = connection.execute(statement).mappings().first()
    return None if row is None else _claim(row)


def _get(connection: sa.Connection, claim_id: str) -> Claim:
    row = connection.execute(sa.select(_claims).where(_claims.c.id == claim_id)).mappings().first()
    if row is None:
        raise RecordNotFound(f"The store holds no claim {claim_id!r}.")
    return _claim(row)


def _claim(row: sa.RowMapping) -> Claim:
    return Claim(**{name: row[name] for name in Claim.model_fields})
