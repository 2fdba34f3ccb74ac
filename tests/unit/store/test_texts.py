"""Texts of calls: kept by month, pruned by month, and never where training needs them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from slm_core.errors import RecordNotFound, StoreError
from slm_core.records import Call, ClaimState
from slm_core.store import AddResult, Store
from slm_core.testing.records import make_call

Sql = Callable[..., list[Any]]
JULY, AUGUST, SEPTEMBER = (datetime(2026, month, 15, tzinfo=UTC) for month in (7, 8, 9))


def only_successes(call: Call) -> str | None:
    return None if call.success else "call failed"


@pytest.fixture
def three_months(store: Store) -> Store:
    """Ten calls a month of which four failed; July's usable ones are trained on."""
    months = (JULY, AUGUST, SEPTEMBER)
    calls = [
        make_call(10 * m + n, created_at=start + timedelta(minutes=n), success=n >= 4)
        for m, start in enumerate(months)
        for n in range(10)
    ]
    store.calls.add(calls, only_successes)
    (claim, _) = store.claims.make(size=6)[:2]
    store.claims.take(claim.id, "run")
    store.claims.done(claim.id, "run")
    return store


def counts(store: Store) -> tuple[Any, ...]:
    calls = store.calls
    return calls.count(), calls.waiting(), calls.unusable(), calls.stats(), store.claims.list()


def test_a_pruning_takes_what_can_never_train_and_counts_it(three_months: Store) -> None:
    store = three_months
    before = counts(store)
    done = store.calls.prune(202609)
    assert [(one.month, one.kept, one.pruned) for one in done] == [(202607, 6, 4), (202608, 6, 4)]
    assert store.calls.prunings() == done
    assert counts(store) == before
    assert store.verify() == []

    left = {call.id for call in store.calls.select()}
    assert len(left) == 30 - 8
    for claim in store.claims.list():
        assert len(list(store.calls.select(claim_id=claim.id))) == claim.size
    with pytest.raises(RecordNotFound):
        store.calls.get("call-000000")
    assert store.calls.get("call-000020").success is False  # of September

    assert store.calls.prune(202609) == []
    assert store.calls.prunings() == done


def test_a_call_whose_texts_are_gone_is_still_known(three_months: Store) -> None:
    three_months.calls.prune(202609)
    again = make_call(0, created_at=JULY, success=False)
    assert three_months.calls.add([again], only_successes) == AddResult(0, 1, 0, {})
    other_answer = make_call(0, created_at=JULY, success=False, response="else")
    with pytest.raises(StoreError, match="already stored with another"):
        three_months.calls.add([other_answer], only_successes)


def test_what_comes_late_to_a_pruned_month_goes_with_the_next_pruning(three_months: Store) -> None:
    store = three_months
    store.calls.prune(202609)
    store.calls.add([make_call(50, created_at=JULY, success=False)], only_successes)
    assert store.calls.get("call-000050").response is not None
    (one,) = store.calls.prune(202609)
    assert (one.month, one.kept, one.pruned) == (202607, 6, 1)
    assert store.verify() == []


def test_claims_go_on_as_if_nothing_was_pruned(three_months: Store) -> None:
    store = three_months
    store.calls.prune(202609)
    taken = store.claims.take_next("run-2")
    assert taken is not None
    assert len(list(store.calls.select(claim_id=taken.id))) == 6
    assert {claim.state for claim in store.claims.list()} == {
        ClaimState.DONE,
        ClaimState.RUNNING,
        ClaimState.NEW,
    }


def test_the_text_of_a_duplicate_stays_while_the_first_needs_it(store: Store) -> None:
    first, same = make_call(1, created_at=JULY), make_call(1, id="same", created_at=JULY)
    store.calls.add([first, same], only_successes)
    assert store.calls.prune(202608) == []
    assert store.calls.get("same").response == first.response


def test_a_lost_text_is_found_also_in_a_pruned_month(three_months: Store, sql: Sql) -> None:
    three_months.calls.prune(202609)
    lost = sql("SELECT exchange_sha256 FROM calls WHERE id = 'call-000005'")[0][0]
    sql("DELETE FROM call_bodies WHERE sha256 = :lost", lost=lost)
    assert three_months.verify() == ["calls call-000005: the exchange text is missing"]


def test_a_month_begins_in_utc(store: Store, sql: Sql) -> None:
    oslo = timezone(timedelta(hours=2))
    store.calls.add(
        [
            make_call(1, created_at=datetime(2026, 8, 1, 1, 59, tzinfo=oslo)),
            make_call(2, created_at=datetime(2026, 8, 1, 2, 0, tzinfo=oslo)),
        ],
        only_successes,
    )
    assert sql("SELECT month FROM calls ORDER BY id") == [(202607,), (202608,)]


@pytest.mark.parametrize("before", [2026, 202600, 202613, 999912])
def test_a_month_that_is_none_or_not_over_is_refused(three_months: Store, before: int) -> None:
    with pytest.raises(StoreError, match="name a month that is not later than the present one"):
        three_months.calls.prune(before)
    assert len(list(three_months.calls.select())) == 30
