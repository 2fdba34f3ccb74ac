"""``slm claims``: which calls belong to which retraining, and a way out for a stuck one."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Annotated

import typer

from slm_core.cli.opening import load_settings, opened_store
from slm_core.cli.terminal import JsonFlag, age, current_user, show_json, show_table
from slm_core.errors import ConfigError, RecordNotFound, RunBusy
from slm_core.records import ClaimState, RunState

if TYPE_CHECKING:
    from slm_core.records import Claim
    from slm_core.training.orders import Order, OrderBook

app = typer.Typer(no_args_is_help=True, help="Claims: batches of calls, one for each retraining.")


@app.command("list")
def list_claims(
    state: Annotated[ClaimState | None, typer.Option(help="Of this state only.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List the claims, oldest first, with who holds each and whether that run is at work."""
    from slm_core.training.orders import OrderBook

    settings = load_settings()
    book = OrderBook(settings.home / "runs")
    with opened_store(settings) as store:
        found = store.claims.list(state)
        waiting = store.calls.waiting()
    if as_json:
        show_json([{**one.model_dump(mode="json"), "holder": _holder(one, book)} for one in found])
        return
    show_table(
        ("claim", "state", "calls", "attempts", "age", "held by", "which is"),
        (
            (
                one.id,
                one.state,
                str(one.size),
                str(one.attempts),
                age(one.created_at),
                one.owner or "",
                _holder(one, book),
            )
            for one in found
        ),
        empty="No claims.",
    )
    threshold = settings.retrain_threshold
    typer.echo(f"{waiting} usable calls wait; {threshold} make a claim.")


@app.command()
def release(
    claim: Annotated[str, typer.Argument(help="Id of the claim, or its beginning.")],
    reason: Annotated[str, typer.Option(help="Why, for the record.")],
    host_is_dead: Annotated[
        bool, typer.Option("--host-is-dead", help="The machine of its run is gone for good.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Give back the claim of a run that will not go on, so that the next nightly run takes it.

    Refused while the run is at work. A run that crashed is better resumed: it keeps its claim.
    """
    from slm_core.training.orders import OrderBook

    settings = load_settings()
    book = OrderBook(settings.home / "runs")
    who = f"{current_user()}@{socket.gethostname()}: {reason}"
    with opened_store(settings) as store:
        found = _choose(store.claims.list(), claim)
        order = book.find(found.owner) if found.owner else None
        _refuse_if_at_work(book, found, order, host_is_dead=host_is_dead)
        if order is None:
            moved = store.claims.force_release(found.id, who)
        else:
            with book.hold(order.run_id):  # nobody may take the run up meanwhile
                moved = store.claims.force_release(found.id, who)
                if order.state is not RunState.COMPLETED:
                    why = f"its claim was given back by {who}"
                    book.note(order.run_id, state=RunState.FAILED, why=why)
    if as_json:
        show_json(moved)
    else:
        typer.echo(f"{moved.id} is {moved.state.value}; `retrain/nightly` takes it next.")


def _holder(claim: Claim, book: OrderBook) -> str:
    """Return how the run that holds the claim stands."""
    if claim.owner is None:
        return ""
    order = book.find(claim.owner)
    if order is None:
        return "not known on this machine"
    if book.at_work(order.run_id):
        return "at work"
    if order.state is RunState.RUNNING:
        return "crashed" if order.host == socket.gethostname() else f"on {order.host}"
    return order.state.value


def _choose(claims: tuple[Claim, ...], wanted: str) -> Claim:
    """Return the claim of that id, or the one whose id begins so."""
    # Ids begin with their kind, which nobody wants to type.
    fits = [
        c for c in claims if c.id.startswith(wanted) or c.id.partition("-")[2].startswith(wanted)
    ]
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise ConfigError(
            f"{len(fits)} claims go by {wanted!r}.", problems=tuple(c.id for c in fits)
        )
    raise RecordNotFound(f"The store holds no claim {wanted!r}; `slm claims list` names them.")


def _refuse_if_at_work(
    book: OrderBook, claim: Claim, order: Order | None, *, host_is_dead: bool
) -> None:
    if order is not None and book.at_work(order.run_id):
        raise RunBusy(f"Run {order.run_id} is at work on this claim; cancel it first.")
    where = "a machine that shares no runs with this one" if order is None else order.host
    here = order is not None and order.host == socket.gethostname()
    ended = order is not None and order.state is not RunState.RUNNING
    if claim.owner and not (here or ended or host_is_dead):
        raise RunBusy(
            f"Run {claim.owner} holds this claim and may be at work on {where}. If that machine "
            "is gone for good, add --host-is-dead."
        )
