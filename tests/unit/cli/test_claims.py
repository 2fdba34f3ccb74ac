"""``slm claims``: who holds what, and how a claim is given back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from slm_core.records import Claim, ClaimState, RunState
from slm_core.store import Store
from slm_core.testing.records import make_call
from slm_core.training.orders import Order, OrderBook


@pytest.fixture
def book(slm_home: Path) -> OrderBook:
    return OrderBook(slm_home / "runs")


@pytest.fixture
def claim(store: Store, book: OrderBook) -> Claim:
    """A claim that the crashed run ``run-1`` of this machine holds."""
    store.calls.add([make_call(number) for number in range(4)], lambda call: None)
    claim, _ = store.claims.make(2)
    taken = store.claims.take(claim.id, "run-1")
    assert taken is not None
    book.write(Order(run_id="run-1", flow="retrain", spec={}, claim_id=claim.id))
    return taken


def test_claims_are_listed_with_their_holders(slm: Any, claim: Claim) -> None:
    first, second = slm.json("claims", "list")
    assert (first["owner"], first["holder"]) == ("run-1", "crashed")
    assert (second["state"], second["holder"]) == ("new", "")
    assert "0 usable calls wait; 100 make a claim" in slm("claims", "list").stdout
    assert [one["id"] for one in slm.json("claims", "list", "--state", "running")] == [claim.id]


def test_a_claim_is_given_back_with_a_reason_for_the_record(
    slm: Any, store: Store, claim: Claim, book: OrderBook
) -> None:
    short = claim.id.partition("-")[2][:8]
    assert "--reason" in slm("claims", "release", short, status=2).stderr
    said = slm("claims", "release", short, "--reason", "its data is wrong").stdout
    assert f"{claim.id} is released" in said
    assert store.claims.get(claim.id).state is ClaimState.RELEASED
    order = book.get("run-1")
    assert order.state is RunState.FAILED
    assert "its data is wrong" in order.why
    assert store.claims.take_next("run-2") is not None


def test_the_claim_of_a_run_at_work_stays(
    slm: Any, store: Store, claim: Claim, book: OrderBook
) -> None:
    with book.hold("run-1"):
        said = slm.refused("claims", "release", claim.id, "--reason", "hurry")
    assert "is at work on this claim" in said
    assert store.claims.get(claim.id).owner == "run-1"


@pytest.mark.parametrize("known", [True, False])
def test_one_that_may_be_at_work_on_another_machine_stays_until_that_is_dead(
    slm: Any, store: Store, claim: Claim, book: OrderBook, slm_home: Path, known: bool
) -> None:
    if known:
        book.note("run-1", host="elsewhere")
    else:
        (slm_home / "runs" / "run-1" / "order.json").unlink()
    release = ("claims", "release", claim.id, "--reason", "it burnt")
    assert "--host-is-dead" in slm.refused(*release)
    assert store.claims.get(claim.id).owner == "run-1"
    slm(*release, "--host-is-dead")
    assert store.claims.get(claim.id).owner is None


def test_only_a_claim_that_is_held_can_be_given_back(slm: Any, store: Store, claim: Claim) -> None:
    (new,) = store.claims.list(ClaimState.NEW)
    assert "is new" in slm.refused("claims", "release", new.id, "--reason", "why not")
    assert "slm claims list" in slm.refused("claims", "release", "nothing", "--reason", "x")
    assert "2 claims" in slm.refused("claims", "release", "claim-", "--reason", "x", status=2)
