"""Counts what becomes of the traffic, in memory first: no request ever waits for a database.

A thread brings the counts to the store once a second. While the store does not answer they
are kept; a server that is killed loses those of its last second.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from typing import TYPE_CHECKING

from slm_core.errors import StoreError
from slm_core.records import Route, TrafficKey, TrafficOutcome, TrafficRole

if TYPE_CHECKING:
    from slm_core.store import Store

log = logging.getLogger(__name__)


class Tally:
    """Counts from any thread."""

    def __init__(self, store: Store, *, every_seconds: float = 1.0) -> None:
        self._store = store
        self._every_seconds = every_seconds
        self._counts: Counter[TrafficKey] = Counter()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="slm-tally", daemon=True)

    def start(self) -> None:
        """Begin to bring counts to the store."""
        self._thread.start()

    def count(self, route: Route, role: TrafficRole, outcome: TrafficOutcome) -> None:
        """Count one question to the adapter of ``route``."""
        key = TrafficKey(
            agent_name=route.agent_name,
            track=route.track,
            adapter_id=route.adapter_id,
            version=route.version,
            role=role,
            outcome=outcome,
        )
        with self._lock:
            self._counts[key] += 1

    def flush(self) -> None:
        """Bring what was counted to the store; keep it if that fails."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        if not counts:
            return
        try:
            self._store.traffic.add(counts)
        except StoreError as error:
            with self._lock:
                self._counts.update(counts)
            if not self._failing:
                log.error("counts of the traffic are kept in memory: %s", error)
            self._failing = True
        else:
            self._failing = False

    def close(self) -> None:
        """Stop, and bring the last counts to the store."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        self.flush()

    def _run(self) -> None:
        while not self._stop.wait(self._every_seconds):
            self.flush()
