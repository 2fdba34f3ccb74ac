"""Re-hash everything that is stored under a hash, and list what disagrees.

Finds rows that were edited by hand, a disk that lies, and tables from two different backups.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from slm_core.records import Evaluation, sha256_hex
from slm_core.store import schema, totals
from slm_core.store.claims import id_of
from slm_core.store.encoding import from_json
from slm_core.store.engine import Database
from slm_core.store.evaluation import metric_rows
from slm_core.store.packing import TEXTS, call_rows, found_by, unpacked
from slm_core.store.quarantine import row_id

_calls = schema.calls
_bodies = schema.call_bodies
_claims = schema.claims
_metrics = schema.evaluation_metrics
_RECORDS = (
    schema.datasets,
    schema.runs,
    schema.adapters,
    schema.evaluations,
    schema.decisions,
    schema.promotions,
    schema.approvals,
)


def disagreements(database: Database) -> Iterator[str]:
    """Yield one line for each thing that is not what its hash or its owner says."""
    yield from _bodies_that_changed(database)
    yield from _calls_that_changed(database)
    yield from _claims_that_changed(database)
    yield from _totals_that_changed(database)
    yield from _rows_that_changed(database)
    for table in _RECORDS:
        yield from _records_that_changed(database, table)
    yield from _metrics_that_changed(database)


def _bodies_that_changed(database: Database) -> Iterator[str]:
    for row in _rows(database, sa.select(_bodies)):
        if sha256_hex(row["body"]) != row["sha256"]:
            yield f"call_bodies {row['sha256']}: the text has another hash"
    pruned = sa.select(schema.prunings.c.month)
    for part in TEXTS:
        with_text = _calls.outerjoin(_bodies, found_by(part, _bodies.c))
        lost = (
            sa.select(_calls.c.id)
            .select_from(with_text)
            .where(_bodies.c.sha256.is_(None))
            .where(schema.usable | _calls.c.month.not_in(pruned))
        )
        for row in _rows(database, lost):
            yield f"calls {row['id']}: the {part} text is missing"


def _calls_that_changed(database: Database) -> Iterator[str]:
    for row in call_rows(database):
        try:
            digest = unpacked(row).digest()
        except ValueError as error:
            yield f"calls {row['id']}: cannot be read ({type(error).__name__})"
        else:
            if digest != row["digest"]:
                yield f"calls {row['id']}: question and answer have another digest"


def _claims_that_changed(database: Database) -> Iterator[str]:
    for claim in _rows(database, sa.select(_claims).order_by(_claims.c.number)):
        held = (
            sa.select(_calls.c.id)
            .where(_calls.c.claim_id == claim["id"])
            .order_by(_calls.c.created_at, _calls.c.id)
        )
        ids = [row["id"] for row in _rows(database, held)]
        if len(ids) != claim["size"] or id_of(ids) != claim["id"]:
            yield f"claims {claim['id']}: holds other calls than when it was made"


def _totals_that_changed(database: Database) -> Iterator[str]:
    with database.read(one_moment=True) as connection:
        said, are = totals.stored(connection), totals.recounted(connection)
    for group in said.totals.keys() | are.totals.keys():
        if said.totals.get(group) != are.totals.get(group):
            yield f"call_totals {'/'.join(group)}: the calls add up to something else"
    if said.seconds != are.seconds:
        yield "call_seconds: the calls add up to something else"
    if said.reasons != are.reasons:
        yield "call_reasons: the calls add up to something else"


def _rows_that_changed(database: Database) -> Iterator[str]:
    for row in _rows(database, sa.select(schema.quarantine)):
        if row_id(row["source"], row["reason"], row["raw"]) != row["id"]:
            yield f"quarantine {row['id']}: the row has another hash"


def _records_that_changed(database: Database, table: sa.Table) -> Iterator[str]:
    for row in _rows(database, sa.select(*table.c["id", "sha256", "record"])):
        if sha256_hex(row["record"]) != row["sha256"]:
            yield f"{table.name} {row['id']}: the record has another hash"


def _metrics_that_changed(database: Database) -> Iterator[str]:
    for row in _rows(database, sa.select(*schema.evaluations.c["id", "record"])):
        try:
            said = metric_rows(Evaluation.model_validate(from_json(row["record"])))
        except ValueError as error:
            yield f"evaluations {row['id']}: cannot be read ({type(error).__name__})"
            continue
        stored = _rows(database, sa.select(_metrics).where(_metrics.c.evaluation_id == row["id"]))
        if {frozenset(m.items()) for m in stored} != {frozenset(m.items()) for m in said}:
            yield f"evaluations {row['id']}: the metrics table says something else"


def _rows(database: Database, statement: sa.Select[Any]) -> Iterator[sa.RowMapping]:
    with database.read() as connection:
        # Not all at once: the texts of all calls may be larger than memory.
        yield from connection.execute(statement.execution_options(yield_per=1000)).mappings()
