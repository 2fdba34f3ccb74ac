"""Training runs with their attempts, and the adapters they made."""

from __future__ import annotations

from slm_core.records import Adapter, TrainingRun
from slm_core.store import schema
from slm_core.store.table import RecordTable, refuse_other_content


class Runs(RecordTable[TrainingRun]):
    """Training runs; the only records that move on after they were saved."""

    table = schema.runs
    record_type = TrainingRun
    description = frozenset({"created_at", "state", "attempts", "adapter_id"})

    def update(self, run: TrainingRun) -> TrainingRun:
        """Store the state, attempts and adapter that ``run`` has now; return what is stored.

        Raises:
            RecordNotFound: the run was never saved.
            StoreError: it differs in more than that.
        """
        with self._database.write() as connection:
            stored = self._get(connection, run.id)
            refuse_other_content(stored, run, self.description)
            updated = run.model_copy(update={"created_at": stored.created_at})
            self._replace(connection, updated)
        return updated


class Adapters(RecordTable[Adapter]):
    """Every adapter that was trained.

    The same training done twice gives the same weights and the same id: the account of the
    first run stays, the path is the latest.
    """

    table = schema.adapters
    record_type = Adapter
    description = frozenset({"created_at", "path", "run_id", "code_version", "summary", "losses"})
    follows = frozenset({"path"})
