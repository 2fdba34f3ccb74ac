"""A request for a promotion, its answer, and the moves that follow; told to who listens."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import TYPE_CHECKING, cast

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import INPUTS, RUN_ID
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound

from slm_core.errors import RecordNotFound
from slm_core.records import Approval, ApprovalState, Dataset, Route, Stage, Track
from slm_core.report.approval_page import Evidence, approval_markdown, approval_summary
from slm_core.serving import PromotionSpec, carry_out, request_approval, roll_back
from tasks._events import announce
from tasks._wiring import current_settings, opened_store, step

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

    from slm_core.store import Store

log = logging.getLogger(__name__)

PROMOTE = "promote/adapter"


@step("ask for a promotion")
def ask_for_promotion(
    run_id: str,
    spec: PromotionSpec,
    adapter_id: str | None,
    agent_name: str | None,
    track: Track | None,
    to_stage: Stage | None,
) -> Approval:
    """Store what this run asks; a run that was retried finds what it asked before."""
    with opened_store() as store:
        return request_approval(
            store,
            spec,
            run_id=run_id,
            adapter_id=adapter_id,
            agent_name=agent_name,
            track=track,
            to_stage=to_stage,
        )


# The only task whose result is kept: a run that is resumed must not call people twice.
@task(
    name="show the evidence",
    task_run_name="show the evidence",
    cache_policy=INPUTS + RUN_ID,
    persist_result=True,
)
def show_evidence(approval_id: str, *, needs_person: bool) -> str:
    """Show the evidence in the run, say so if a person is needed, and return it in short."""
    with opened_store() as store:
        approval = store.approvals.get(approval_id)
        evidence = _evidence(store, approval)
    text, summary = approval_markdown(evidence), approval_summary(evidence)
    create_markdown_artifact(text, key="promotion", description="What is asked, and its evidence")
    if needs_person:
        announce(
            "slm.promotion.waiting",
            f"slm.promotion.{approval.id}",
            adapter_id=approval.adapter_id,
            routes=_routes_of(approval),
            to_stage=approval.moves[0].to_stage,
            expires_at=approval.expires_at.isoformat(),
        )
    return summary


@step("store the answer")
def store_answer(
    approval: Approval,
    state: ApprovalState,
    who: str,
    reason: str,
    share: float | None = None,
    answered_at: datetime | None = None,
) -> Approval:
    """Store who decided what, when, and why, before anything moves."""
    with opened_store() as store:
        decided = store.approvals.decide(
            approval.id, state, who=who, reason=reason, share=share, now=answered_at
        )
    tell_decided(decided)
    return decided


@step("move the routes")
def move_routes(approval: Approval) -> list[Route]:
    """Make the approved moves; those made before a crash stay."""
    with opened_store() as store:
        return carry_out(store, approval)


@step("roll back")
def roll_back_route(run_id: str, agent_name: str, track: Track, who: str, reason: str) -> Route:
    """Bring back the adapter that was live before."""
    with opened_store() as store:
        route = roll_back(
            store, agent_name=agent_name, track=track, who=who, reason=reason, run_id=run_id
        )
    announce(
        "slm.promotion.decided",
        f"slm.promotion.{run_id}",
        decision="rolled back",
        adapter_id=route.adapter_id,
        routes=f"{agent_name}/{track}",
        who=who,
    )
    return route


def start_promotion(adapter_id: str, spec: PromotionSpec) -> None:
    """Start ``promote/adapter`` for a new candidate; never twice for one adapter.

    A server that is away is no error: ``settle/routes`` starts what was not started.
    """
    try:
        run = cast(
            "FlowRun",
            run_deployment(
                PROMOTE,
                parameters={
                    "adapter_id": adapter_id,
                    "overrides": spec.model_dump(mode="json"),
                },
                timeout=0,
                as_subflow=False,
                idempotency_key=f"promote-{adapter_id}",
            ),
        )
    except ObjectNotFound:
        log.warning(
            "candidate waits: no deployment %s; run `make deploy`, and `settle/routes` asks again "
            "adapter=%s",
            PROMOTE,
            adapter_id,
        )
    except Exception as error:
        log.warning(
            "candidate waits: the server was not reached adapter=%s error=%s; `settle/routes` "
            "asks again",
            adapter_id,
            type(error).__name__,
        )
    else:
        log.info("promotion asked for adapter=%s run=%s", adapter_id, run.id)


def tell_decided(approval: Approval) -> None:
    """Announce the answer to a request."""
    announce(
        "slm.promotion.decided",
        f"slm.promotion.{approval.id}",
        decision=approval.state,
        adapter_id=approval.adapter_id,
        routes=_routes_of(approval),
        to_stage=approval.moves[0].to_stage,
        who=approval.who,
    )


def _routes_of(approval: Approval) -> str:
    return ", ".join(f"{move.agent_name}/{move.track}" for move in approval.moves)


def _evidence(store: Store, approval: Approval) -> Evidence:
    adapter = store.adapters.get(approval.adapter_id)
    dataset: Dataset | None
    try:
        dataset = store.datasets.get(adapter.dataset_id)
    except RecordNotFound:
        dataset = None
    page = current_settings().home / "runs" / adapter.run_id / "report" / "report.html"
    decision = store.decisions.get(approval.decision_id)
    report = f"[report.html]({page.resolve().as_uri()}) on the worker" if page.exists() else None
    return Evidence(approval, decision, adapter, dataset, report)
