"""The quarantine: nothing is lost, and reading a spool again adds nothing."""

from __future__ import annotations

from datetime import timedelta

from slm_core.records import Quarantined
from slm_core.store import Store
from slm_core.testing.records import make_call


def row(source: str = "seg-1:0", reason: str = "not JSON", raw: str = "{") -> Quarantined:
    return Quarantined(source=source, reason=reason, raw=raw)


def test_rows_are_kept_with_their_reason(store: Store) -> None:
    start = make_call().created_at
    rows = [
        row(f"seg-1:{n}", raw=raw).model_copy(update={"created_at": start + timedelta(seconds=n)})
        for n, raw in enumerate(["{", "\x00\ud83d", "æ" * 65_536])
    ]
    assert store.quarantine.add(rows) == 3
    assert store.quarantine.list() == tuple(rows)
    assert store.quarantine.list(limit=2) == tuple(rows[:2])


def test_the_same_row_of_the_same_source_is_kept_once(store: Store) -> None:
    assert store.quarantine.add([row(), row()]) == 1
    assert store.quarantine.add([row(), row("seg-2:0")]) == 1
    assert len(store.quarantine.list()) == 2
    assert store.quarantine.add([]) == 0


def test_rows_are_counted_by_reason(store: Store) -> None:
    assert store.quarantine.counts() == {}
    store.quarantine.add([row(f"a:{n}") for n in range(3)] + [row("b:0", "no messages")])
    assert list(store.quarantine.counts().items()) == [("not JSON", 3), ("no messages", 1)]
