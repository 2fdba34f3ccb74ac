"""Claims: who gets which calls, and that no claim moves where it may not."""

from __future__ import annotations

from datetime import timedelta

import pytest

from slm_core.errors import RecordNotFound, StoreError
from slm_core.records import Call, Claim, ClaimState
from slm_core.store import Store
from slm_core.testing.records import make_call


def add_calls(store: Store, count: int, first: int = 0) -> None:
    store.calls.add([make_call(n) for n in range(first, first + count)], lambda _: None)


@pytest.fixture
def claim(store: Store) -> Claim:
    add_calls(store, 5)
    (claim,) = store.claims.make(size=5)
    return claim


def test_only_full_claims_are_made(store: Store) -> None:
    add_calls(store, 25)
    made = store.claims.make(size=10)
    assert [(c.size, c.state, c.owner, c.attempts) for c in made] == [
        (10, ClaimState.NEW, None, 0),
        (10, ClaimState.NEW, None, 0),
    ]
    assert store.calls.waiting() == 5
    assert store.claims.make(size=10) == ()
    add_calls(store, 5, first=25)
    assert len(store.claims.make(size=10)) == 1
    assert store.calls.waiting() == 0
    assert len(store.claims.list()) == 3


def test_a_hundred_is_the_usual_size(store: Store) -> None:
    add_calls(store, 99)
    assert store.claims.make() == ()
    add_calls(store, 1, first=99)
    assert [c.size for c in store.claims.make()] == [100]


def test_calls_are_claimed_in_the_order_of_capture(store: Store) -> None:
    start = make_call().created_at
    calls = [make_call(n, created_at=start - timedelta(seconds=n)) for n in range(6)]
    store.calls.add(calls, lambda _: None)
    newer, older = (
        {call.id for call in store.calls.select(claim_id=claim.id)}
        for claim in reversed(store.claims.make(size=3))
    )
    assert older == {calls[5].id, calls[4].id, calls[3].id}
    assert newer == {calls[2].id, calls[1].id, calls[0].id}


def test_unusable_calls_are_never_claimed(store: Store) -> None:
    def odd_numbers_only(call: Call) -> str | None:
        return None if int(call.id[-1]) % 2 else "even"

    store.calls.add([make_call(n) for n in range(10)], odd_numbers_only)
    (claim,) = store.claims.make(size=5)
    assert [int(call.id[-1]) for call in store.calls.select(claim_id=claim.id)] == [1, 3, 5, 7, 9]


def test_a_claim_of_nothing_is_refused(store: Store) -> None:
    with pytest.raises(StoreError, match="at least one call"):
        store.claims.make(size=0)


def test_a_claim_goes_through_its_life(store: Store, claim: Claim) -> None:
    assert store.claims.submitted(claim.id)
    assert store.claims.get(claim.id).state is ClaimState.SUBMITTED
    taken = store.claims.take(claim.id, "run-1")
    assert taken is not None
    assert (taken.state, taken.owner, taken.attempts) == (ClaimState.RUNNING, "run-1", 1)
    released = store.claims.release(claim.id, "run-1")
    assert (released.state, released.owner, released.attempts) == (ClaimState.RELEASED, None, 1)
    again = store.claims.take(claim.id, "run-2")
    assert again is not None
    assert (again.owner, again.attempts) == ("run-2", 2)
    done = store.claims.done(claim.id, "run-2")
    assert (done.state, done.owner, done.attempts) == (ClaimState.DONE, "run-2", 2)
    assert store.claims.get(claim.id) == done
    assert done.created_at == claim.created_at


def test_a_run_that_is_resumed_keeps_its_claim(store: Store, claim: Claim) -> None:
    first = store.claims.take(claim.id, "run-1")
    assert store.claims.take(claim.id, "run-1") == first
    assert store.claims.take_next("run-1") == first


def test_nobody_takes_what_another_run_holds_or_has_done(store: Store, claim: Claim) -> None:
    store.claims.take(claim.id, "run-1")
    assert store.claims.take(claim.id, "run-2") is None
    assert store.claims.take_next("run-2") is None
    store.claims.done(claim.id, "run-1")
    assert store.claims.take(claim.id, "run-1") is None
    assert store.claims.take(claim.id, "run-2") is None
    assert store.claims.take_next("run-1") is None


def test_the_oldest_free_claim_is_next_whatever_its_state(store: Store) -> None:
    add_calls(store, 4)
    a, b, c, d = store.claims.make(size=1)
    store.claims.submitted(b.id)
    store.claims.take(c.id, "run-1")
    store.claims.release(c.id, "run-1")
    store.claims.take(a.id, "run-0")
    taken = [store.claims.take_next(f"run-{n}") for n in range(2, 6)]
    assert [claim and claim.id for claim in taken] == [b.id, c.id, d.id, None]


def test_the_run_was_quicker_than_the_note_that_it_was_started(store: Store, claim: Claim) -> None:
    store.claims.take(claim.id, "run-1")
    assert not store.claims.submitted(claim.id)
    assert store.claims.get(claim.id).state is ClaimState.RUNNING


def test_only_the_holder_gives_a_claim_up(store: Store, claim: Claim) -> None:
    store.claims.take(claim.id, "run-1")
    with pytest.raises(StoreError, match="it is running, held by 'run-1'"):
        store.claims.release(claim.id, "run-2")
    with pytest.raises(StoreError, match="it is running, held by 'run-1'"):
        store.claims.done(claim.id, "run-2")
    assert store.claims.get(claim.id).owner == "run-1"


def test_giving_up_twice_changes_nothing(store: Store, claim: Claim) -> None:
    store.claims.take(claim.id, "run-1")
    released = store.claims.release(claim.id, "run-1")
    assert store.claims.release(claim.id, "run-1") == released
    store.claims.take(claim.id, "run-1")
    done = store.claims.done(claim.id, "run-1")
    assert store.claims.done(claim.id, "run-1") == done


@pytest.mark.parametrize("state", ["new", "submitted", "released"])
def test_what_nobody_runs_cannot_be_done(store: Store, claim: Claim, state: str) -> None:
    if state == "submitted":
        store.claims.submitted(claim.id)
    if state == "released":
        store.claims.take(claim.id, "run-1")
        store.claims.release(claim.id, "run-1")
    with pytest.raises(StoreError, match=f"cannot become done: it is {state}"):
        store.claims.done(claim.id, "run-1")


def test_what_is_done_stays_done(store: Store, claim: Claim) -> None:
    store.claims.take(claim.id, "run-1")
    store.claims.done(claim.id, "run-1")
    with pytest.raises(StoreError, match="cannot become released: it is done"):
        store.claims.release(claim.id, "run-1")
    assert not store.claims.submitted(claim.id)


def test_an_unknown_claim_is_not_found(store: Store) -> None:
    for ask in (
        lambda: store.claims.get("none"),
        lambda: store.claims.take("none", "run-1"),
        lambda: store.claims.submitted("none"),
        lambda: store.claims.release("none", "run-1"),
        lambda: store.claims.done("none", "run-1"),
    ):
        with pytest.raises(RecordNotFound, match="no claim 'none'"):
            ask()


def test_claims_are_listed_by_state(store: Store) -> None:
    add_calls(store, 3)
    a, b, c = store.claims.make(size=1)
    store.claims.take(b.id, "run-1")
    assert [claim.id for claim in store.claims.list()] == [a.id, b.id, c.id]
    assert [claim.id for claim in store.claims.list(ClaimState.NEW)] == [a.id, c.id]
    assert [claim.id for claim in store.claims.list(ClaimState.RUNNING)] == [b.id]
    assert store.claims.list(ClaimState.DONE) == ()


def test_a_claim_can_be_taken_from_a_run_that_is_gone(store: Store, claim: Claim) -> None:
    store.claims.take(claim.id, "run-1")
    with pytest.raises(StoreError, match="cannot be given back: it is running, held by 'run-1'"):
        store.claims.force_release(claim.id, "on call", owner="run-2")
    released = store.claims.force_release(claim.id, "on call", owner="run-1")
    assert (released.state, released.owner, released.attempts) == (ClaimState.RELEASED, None, 1)
    with pytest.raises(StoreError, match="Only the run that holds a claim"):
        store.claims.done(claim.id, "run-1")
    taken = store.claims.take_next("run-2")
    assert taken is not None
    assert (taken.id, taken.attempts) == (claim.id, 2)
    assert store.claims.force_release(claim.id, "on call").state is ClaimState.RELEASED


def test_only_a_claim_that_a_run_holds_can_be_taken_from_it(store: Store, claim: Claim) -> None:
    with pytest.raises(StoreError, match="it is new, held by None"):
        store.claims.force_release(claim.id, "on call")
    with pytest.raises(RecordNotFound):
        store.claims.force_release("none", "on call")
    assert store.claims.get(claim.id) == claim
