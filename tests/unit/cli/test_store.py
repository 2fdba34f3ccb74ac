"""``slm store``: revisions forward and back, and what a pruning took."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from slm_core.store import Store, schema
from slm_core.testing.records import make_call


def one_of_two(call: Any) -> str | None:
    return None if call.success else "call failed"


def fill(store: Store) -> None:
    july = datetime(2026, 7, 1, tzinfo=UTC)
    store.calls.add(
        [make_call(n, created_at=july, success=n % 2 > 0) for n in range(6)], one_of_two
    )


def test_down_and_up_again_keeps_the_data_and_warns_first(slm: Any, store: Store) -> None:
    fill(store)
    store.close()
    went = slm("store", "downgrade", "--to", "0001", "--yes")
    assert "Back up the store first" in went.stderr
    assert f"from revision {schema.REVISION} to 0001" in went.stdout
    assert "from revision 0001 to 0002" in slm("store", "upgrade", "--to", "0002").stdout
    assert slm.json("store", "verify") == []
    assert sum(one["calls"] for one in slm.json("calls", "stats")) == 6


def test_without_a_yes_nothing_goes_back(slm: Any, store: Store) -> None:
    store.close()
    slm("store", "downgrade", "--to", "0001", status=1)
    assert f"is at revision {schema.REVISION}" in slm("store", "upgrade").stdout


def test_a_pruning_says_what_it_took(slm: Any, store: Store) -> None:
    fill(store)
    (month,) = slm.json("store", "prune", "--before", "2026-08")
    assert (month["month"], month["kept"], month["pruned"]) == (202607, 3, 3)
    again = slm("store", "prune", "--before", "2026-08").stdout
    assert "No call before 2026-08" in again
    assert "Pruned earlier: 3 calls, last on 20" in again
    assert "takes a month such as" in slm.refused("store", "prune", "--before", "August", status=2)
    assert "not later than the present" in slm.refused("store", "prune", "--before", "9999-01")
