"""Decisions: append-only."""

from __future__ import annotations

from slm_core.records import Decision
from slm_core.store import schema
from slm_core.store.table import RecordTable


class Decisions(RecordTable[Decision]):
    """Every verdict that was given; none is ever changed or removed."""

    table = schema.decisions
    record_type = Decision

    def of_adapter(self, adapter_id: str) -> tuple[Decision, ...]:
        """Return the decisions on one adapter, oldest first."""
        return self._select(schema.decisions.c.adapter_id == adapter_id)
