"""What the tables of whole records share: save, read back, never change what was said."""

from __future__ import annotations

from typing import Any, ClassVar, Generic, TypeVar

import sqlalchemy as sa

from slm_core.errors import RecordNotFound, StoreError
from slm_core.records import (
    Adapter,
    Approval,
    Dataset,
    Decision,
    Evaluation,
    Promotion,
    TrainingRun,
    sha256_hex,
)
from slm_core.store.encoding import from_json, to_json
from slm_core.store.engine import Database

R = TypeVar("R", Dataset, TrainingRun, Adapter, Evaluation, Decision, Approval)
AnyRecord = Dataset | TrainingRun | Adapter | Evaluation | Decision | Approval | Promotion


class RecordTable(Generic[R]):
    """One kind of record, kept whole as JSON beside the few columns that are asked about."""

    table: ClassVar[sa.Table]
    record_type: type[R]
    description: ClassVar[frozenset[str]] = frozenset({"created_at"})
    """Fields that are not content: the same record saved again may differ in them."""
    follows: ClassVar[frozenset[str]] = frozenset()
    """Those of them that take the value saved last; the others keep the first."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def save(self, record: R) -> R:
        """Store ``record`` unless it is there already; return the one that is stored.

        Raises:
            StoreError: the id is taken by a record with other content.
        """
        row = packed(record) | self._narrow(record)
        insert = self._database.insert(self.table).values(row).on_conflict_do_nothing()
        with self._database.write() as connection:
            if connection.scalar(insert.returning(self.table.c.id)) is not None:
                self._save_parts(connection, record)
                return record
            stored = self._get(connection, record.id)
            refuse_other_content(stored, record, self.description)
            followed = {name: getattr(record, name) for name in self.follows}
            moved = stored.model_copy(update=followed)
            if moved != stored:
                self._replace(connection, moved)
            return moved

    def get(self, record_id: str) -> R:
        """Return the record of that id.

        Raises:
            RecordNotFound: there is none.
        """
        with self._database.read() as connection:
            return self._get(connection, record_id)

    def list(self) -> tuple[R, ...]:
        """Return every record, oldest first."""
        return self._select()

    def _narrow(self, record: R) -> dict[str, Any]:
        """Return the columns that repeat a field of the record."""
        fields = type(record).model_fields
        return {c.name: getattr(record, c.name) for c in self.table.c if c.name in fields}

    def _save_parts(self, connection: sa.Connection, record: R) -> None:
        """Fill further tables in the same transaction."""

    def _select(self, *where: sa.ColumnElement[bool]) -> tuple[R, ...]:
        statement = (
            sa.select(self.table.c.record)
            .where(*where)
            .order_by(self.table.c.created_at, self.table.c.id)
        )
        with self._database.read() as connection:
            return tuple(self._unpacked(text) for text in connection.scalars(statement))

    def _get(self, connection: sa.Connection, record_id: str) -> R:
        statement = sa.select(self.table.c.record).where(self.table.c.id == record_id)
        text = connection.scalar(statement)
        if text is None:
            raise RecordNotFound(f"The store holds no {self.record_type.__name__} {record_id!r}.")
        return self._unpacked(text)

    def _replace(self, connection: sa.Connection, record: R) -> None:
        row = packed(record) | self._narrow(record)
        connection.execute(sa.update(self.table).where(self.table.c.id == record.id).values(row))

    def _unpacked(self, text: str) -> R:
        return self.record_type.model_validate(from_json(text))


def packed(record: AnyRecord) -> dict[str, str]:
    """Return the columns that hold a whole record: its JSON and the hash of it."""
    text = to_json(record)
    return {"sha256": sha256_hex(text), "record": text}


def refuse_other_content(
    stored: AnyRecord, offered: AnyRecord, description: frozenset[str]
) -> None:
    """Raise StoreError when two records of one id differ in more than ``description``."""
    # Compared as they read back: a tuple in free-form data comes back as a list.
    before, now = (from_json(to_json(record)) for record in (stored, offered))
    different = [name for name in before if before[name] != now[name] and name not in description]
    if different:
        raise StoreError(
            f"{type(stored).__name__} {stored.id!r} is already stored with other content. "
            "What was stored stays; give the new one an id of its own.",
            fields=different,
        )
