"""Where every record is kept: SQLite by default, PostgreSQL for more than one machine.

    with open_store("sqlite:///runs/store.db") as store:
        store.calls.add(calls, usable)
        for claim in store.claims.make():
            ...

The store hands out records, never rows. What it refuses, it refuses loudly: a record saved
again under the same id with other content, a database newer than this code, an illegal move
of a claim or a route.
"""

from slm_core.store.capture import AddResult
from slm_core.store.evaluation import MetricPoint
from slm_core.store.opening import Store, migrate_store, open_store
from slm_core.store.texts import Pruning

__all__ = ["AddResult", "MetricPoint", "Pruning", "Store", "migrate_store", "open_store"]
