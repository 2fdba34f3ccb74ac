"""Decisions are only ever added."""

from __future__ import annotations

from datetime import timedelta

import pytest

from slm_core.errors import StoreError
from slm_core.store import Store
from slm_core.testing.records import make_decision


def test_a_decision_reads_back_equal_and_stays(store: Store) -> None:
    decision = make_decision("PARTIAL")
    store.decisions.save(decision)
    with pytest.raises(StoreError, match="other content"):
        store.decisions.save(make_decision("SUCCESS"))
    later = make_decision("PARTIAL", created_at=decision.created_at + timedelta(days=1))
    assert store.decisions.save(later) == decision
    assert store.decisions.list() == (decision,)
    assert not any(hasattr(store.decisions, name) for name in ("update", "delete", "remove"))


def test_decisions_are_found_by_adapter_oldest_first(store: Store) -> None:
    start = make_decision().created_at
    for name, adapter, day in (("d2", "a", 2), ("d1", "a", 1), ("d3", "b", 0), ("d4", None, 0)):
        store.decisions.save(
            make_decision(id=name, adapter_id=adapter, created_at=start + timedelta(days=day))
        )
    assert [decision.id for decision in store.decisions.of_adapter("a")] == ["d1", "d2"]
