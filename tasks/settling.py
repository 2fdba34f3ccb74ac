"""What was asked, approved or put into the traffic, and what no flow run looks after any more.

A promotion may lie for days between two processes, and each of them may die. What they leave is
found here, again and again, in the store and at the Prefect server. Each step may be repeated:
it changes only what is still open.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

from prefect.client.schemas.objects import StateType

from slm_core.errors import ConfigError, IllegalPromotion, StoreError
from slm_core.presets import RetrainSpec
from slm_core.records import Approval, ApprovalState, Promotion, Route, Stage, utc_now
from slm_core.serving import carry_out, guard_routes
from tasks import _flow_runs
from tasks._events import announce
from tasks._wiring import opened_store, order_book, step
from tasks.promotion import start_promotion, tell_decided
from tasks.promotion_form import Verdict, read_answer, verdict

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

    from slm_core.store import Store

log = logging.getLogger(__name__)

_AWAKE = frozenset({StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING})
"""A run that is about to go on may bring the answer with it."""
_DEAD = frozenset({StateType.CRASHED, StateType.FAILED})
CARRIED_OUT_WITHIN = timedelta(days=1)
"""Moves that were approved longer ago are made only when somebody retries their run."""


@step("guard the canaries")
def guard_canaries() -> list[Promotion]:
    """Take weak canaries back; return those moves."""
    with opened_store() as store:
        routes = guard_routes(store)
        moves = [store.routes.history(route.agent_name, route.track)[-1] for route in routes]
    for move in moves:
        announce(
            "slm.canary.stepped-back",
            f"slm.promotion.{move.id}",
            adapter_id=move.adapter_id,
            routes=f"{move.agent_name}/{move.track}",
            who=move.who,
            reason=move.reason,
        )
    return moves


@step("close what nobody can answer")
def close_requests() -> list[Approval]:
    """Close requests that waited too long, or whose run ended before it did; return them."""
    closed: list[Approval] = []
    with opened_store() as store:
        for waiting in store.approvals.waiting():
            found = _verdict(waiting, _flow_runs.find(waiting.run_id))
            if found is None:
                continue
            with suppress(StoreError):  # somebody else closed it in this moment
                closed.append(
                    store.approvals.decide(
                        waiting.id,
                        found.state,
                        who=found.who,
                        reason=found.reason,
                        share=found.share,
                        now=found.answered_at,
                    )
                )
    for approval in closed:
        tell_decided(approval)
    return closed


@step("make approved moves")
def make_approved_moves() -> list[Route]:
    """Make the moves of requests whose run died after it was approved; return their routes."""
    routes: list[Route] = []
    with opened_store() as store:
        for approval in store.approvals.list():
            if not _is_open(store, approval):
                continue
            try:
                routes += carry_out(store, approval)
            except (StoreError, IllegalPromotion) as error:
                if error.retryable:
                    raise
                # Its run says so too, red: others moved these routes, or the traffic is against it.
                log.info("approved and not made id=%s: %s", approval.id, error.message)
            else:
                log.warning("moves made for a run that had not id=%s", approval.id)
    return routes


@step("ask for new candidates")
def ask_for_candidates() -> list[str]:
    """Start the promotions that a retraining could not start; return their adapters."""
    with opened_store() as store:
        asked = {approval.adapter_id for approval in store.approvals.list()}
        waiting = {r.adapter_id for r in store.routes.list() if r.stage is Stage.CANDIDATE} - asked
        run_of = {adapter_id: store.adapters.get(adapter_id).run_id for adapter_id in waiting}
    book = order_book()
    started: list[str] = []
    for adapter_id, run_id in sorted(run_of.items()):
        try:
            order = book.find(run_id)
        except ConfigError as error:  # one must not keep the others waiting
            log.warning("candidate waits adapter=%s: %s", adapter_id, error.message)
            continue
        # Only a retraining asks by itself; who trains by hand asks by hand.
        if order is not None and order.flow == "retrain" and not book.at_work(run_id):
            start_promotion(adapter_id, RetrainSpec.model_validate(order.spec).promotion)
            started.append(adapter_id)
    return started


def _verdict(waiting: Approval, run: FlowRun | None) -> Verdict | None:
    """Return the end of a request that nothing else will close; None while it may be answered."""
    state = None if run is None else _flow_runs.state_of(run)
    if state is StateType.CANCELLED:
        return Verdict(ApprovalState.REJECTED, "rule", "run cancelled", None, utc_now())
    if run is not None and state in _DEAD:
        answer = read_answer(str(run.id), run.run_count)
        if answer is not None:  # the run died with it in its hand
            return verdict(answer, waiting)
    if utc_now() >= waiting.expires_at and state not in _AWAKE:
        return Verdict(ApprovalState.EXPIRED, "timeout", "nobody answered", None, utc_now())
    return None


def _is_open(store: Store, approval: Approval) -> bool:
    """Whether a request was approved of late, and some of its moves were never made."""
    decided = approval.decided_at
    if approval.state is not ApprovalState.APPROVED or decided is None:
        return False
    if utc_now() - decided > CARRIED_OUT_WITHIN:
        return False
    return any(
        all(
            made.run_id != approval.run_id
            for made in store.routes.history(move.agent_name, move.track)
        )
        for move in approval.moves
    )
