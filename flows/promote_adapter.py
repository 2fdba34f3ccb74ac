"""Flow ``promote``: a person lets an adapter take its next step towards live.

Candidate, shadow, canary, live: one run, one step. The run stores what it asks, shows the
evidence, and *suspends*: its process ends and its slot is free until somebody fills in the
form. Then it starts from the top, finds what it asked, stores the answer, and moves the
routes; killed anywhere in between, Retry finishes it. Nobody answering is a rejection.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum

from prefect import State, flow
from prefect.artifacts import create_markdown_artifact
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput, keyset_from_paused_state, read_flow_run_input
from prefect.runtime import deployment, flow_run
from prefect.states import Completed, Suspended
from pydantic import Field

from slm_core.errors import ConfigError
from slm_core.presets import RETRAIN_PRESETS, RetrainPreset
from slm_core.records import Approval, ApprovalState, Stage, Track
from slm_core.serving import PromotionSpec, needs_person
from tasks.promotion import (
    ask_for_promotion,
    move_routes,
    roll_back_route,
    show_evidence,
    store_answer,
)


class Choice(StrEnum):
    """What a person may answer."""

    APPROVE = "approve"
    REJECT = "reject"


class PromotionAnswer(RunInput):
    """The form that a waiting run shows."""

    decision: Choice = Field(description="Let the adapter take this step, or not.")
    approver: str = Field(min_length=1, description="Your name, for the record.")
    reason: str = Field(min_length=1, description="Why, for the record.")
    canary_share: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="For a canary: its part of the conversations. Empty takes the planned one.",
    )


@flow(name="promote")
def promote_adapter(
    adapter_id: str | None = None,
    agent_name: str | None = None,
    track: Track | None = None,
    to_stage: Stage | None = None,
    preset: RetrainPreset = "nano",
    overrides: PromotionSpec | None = None,
    roll_back: bool = False,
    reason: str = "",
    who: str = "",
) -> State:
    """Ask a person to let an adapter take its next step: shadow, canary, live. Or roll back.

    Args:
        adapter_id: which adapter; empty takes the newest candidate.
        agent_name: whose calls; empty takes every agent for whom it is as far.
        track: which of them; empty takes every track.
        to_stage: where to; empty takes the next step. ``canary`` again changes its share.
        preset: plan whose risk tiers and limits hold.
        overrides: tiers and limits in place of the preset's.
        roll_back: bring back the adapter that was live before; needs agent, track, reason
            and who.
        reason: why to roll back.
        who: who rolls back.
    """
    run_id = str(flow_run.id)
    if roll_back:
        if agent_name is None or track is None or not reason or not who:
            raise ConfigError("To roll back, give agent_name, track, reason and who.")
        route = roll_back_route(run_id, agent_name, track, who, reason)
        return Completed(
            name="RolledBack", message=f"{agent_name}/{track}: {route.adapter_id} is live again."
        )
    spec = overrides or RETRAIN_PRESETS[preset].promotion
    approval = ask_for_promotion(run_id, spec, adapter_id, agent_name, track, to_stage)
    if approval.state is ApprovalState.WAITING:
        approval = _answered(approval)
    return _ended(approval)


def _answered(approval: Approval) -> Approval:
    """Return the request with its answer: of a rule, of a person, or of the clock."""
    if not needs_person(approval):
        show_evidence(approval.id, needs_person=False)
        why = "risk tier low: approved without a person"
        return store_answer(approval, ApprovalState.APPROVED, "rule", why)
    said = _said_before()
    if said is not None:
        return _store(approval, said)
    if datetime.now(UTC) >= approval.expires_at:
        return store_answer(approval, ApprovalState.EXPIRED, "timeout", "nobody answered")
    if deployment.id is None:
        store_answer(approval, ApprovalState.REJECTED, "rule", "no deployment started its run")
        raise ConfigError(
            "A run waits for a person only if a deployment started it: "
            "`prefect deployment run promote/adapter`."
        )
    return _store(approval, _ask(approval))


def _store(approval: Approval, answer: PromotionAnswer) -> Approval:
    approved = answer.decision == Choice.APPROVE
    # The server takes no answer once the time is up; only this process may have come later.
    in_time = approval.expires_at - timedelta(seconds=1)
    return store_answer(
        approval,
        ApprovalState.APPROVED if approved else ApprovalState.REJECTED,
        answer.approver,
        answer.reason,
        answer.canary_share,
        min(datetime.now(UTC), in_time),
    )


def _said_before() -> PromotionAnswer | None:
    """Return what a person answered to this attempt of the run, or an earlier one, if anything.

    A run that is resumed begins anew as the same attempt; one that is retried, as the next.
    """
    for attempt in range(1, flow_run.run_count + 1):
        form_of_then = Suspended(timeout_seconds=1, pause_key=_key(attempt))
        # Not by PromotionAnswer.load, which takes an answer that is not there for an empty one.
        said = read_flow_run_input(keyset_from_paused_state(form_of_then)["response"])
        if said is not None:
            return PromotionAnswer.model_validate(said)
    return None


def _ask(approval: Approval) -> PromotionAnswer:
    """Suspend this run until the form is filled in; once it was, return what it says.

    One that ended unanswered asks again, under a key of its own, for what is left of the time.
    """
    evidence = show_evidence(approval.id, needs_person=True)
    left = max(1, round((approval.expires_at - datetime.now(UTC)).total_seconds()))
    return suspend_flow_run(
        wait_for_input=PromotionAnswer.with_initial_data(description=evidence),
        timeout=left,
        key=_key(flow_run.run_count),
    )


def _key(attempt: int) -> str:
    return f"approval-{attempt}"


def _ended(approval: Approval) -> State:
    said = f"{approval.adapter_id}: {approval.state} by {approval.who}. {approval.reason}"
    name = approval.state.capitalize()
    if approval.state is ApprovalState.APPROVED:
        routes = move_routes(approval)
        said += "".join(f"\n* {r.agent_name}/{r.track}: {r.stage}" for r in routes)
        name = "Promoted"
    create_markdown_artifact(said, key="promotion-answer")
    return Completed(name=name, message=said)


if __name__ == "__main__":
    promote_adapter()
