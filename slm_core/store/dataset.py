"""Datasets: which rows were trained and tested on, and where they lie."""

from __future__ import annotations

from typing import Any

from slm_core.records import Dataset
from slm_core.store import schema
from slm_core.store.table import RecordTable


class Datasets(RecordTable[Dataset]):
    """Every dataset that was built.

    The id is the hash of the rows. Building the same rows again, from other calls or by another
    spec, gives the same dataset: the account of the first build stays, the path is the latest.
    """

    table = schema.datasets
    record_type = Dataset
    description = frozenset(Dataset.model_fields) - {"id", "rows", "files"}
    follows = frozenset({"path"})

    def frozen_tests(self) -> list[Dataset]:
        """Return the datasets with a test split, oldest first: never train on those rows."""
        return list(self._select(schema.datasets.c.test_rows > 0))

    def _narrow(self, record: Dataset) -> dict[str, Any]:
        return super()._narrow(record) | {"test_rows": record.rows.get("test", 0)}
