"""Flow ``promote``: a person lets an adapter take its next step towards live.

Candidate, shadow, canary, live: one run, one step. The run stores what it asks, shows the
evidence, and *suspends*: its process ends and its slot is free until somebody fills in the
form. Then it starts from the top, finds what it asked, stores the answer, and moves the
routes; killed anywhere in between, Retry finishes it. Nobody answering is a rejection.
"""

from __future__ import annotations

from datetime import UTC, datetime

from prefect import State, flow
from prefect.artifacts import create_markdown_artifact
from prefect.flow_runs import suspend_flow_run
from prefect.runtime import deployment, flow_run
from prefect.states import Completed

from slm_core.errors import ConfigError
from slm_core.presets import RETRAIN_PRESETS, RetrainPreset
from slm_core.records import Approval, ApprovalState, Stage, Track
from slm_core.serving import PromotionSpec, needs_person
from tasks._artifacts import showing
from tasks.promotion import (
    ask_for_promotion,
    move_routes,
    roll_back_route,
    show_evidence,
    store_answer,
)
from tasks.promotion_form import PromotionAnswer, form_key, read_answer, verdict


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
    said = read_answer(str(flow_run.id), flow_run.run_count)
    if said is not None:
        return store_answer(approval, *verdict(said, approval))
    if datetime.now(UTC) >= approval.expires_at:
        return store_answer(approval, ApprovalState.EXPIRED, "timeout", "nobody answered")
    if deployment.id is None:
        store_answer(approval, ApprovalState.REJECTED, "rule", "no deployment started its run")
        raise ConfigError(
            "A run waits for a person only if a deployment started it: "
            "`prefect deployment run promote/adapter`."
        )
    return store_answer(approval, *verdict(_ask(approval), approval))


def _ask(approval: Approval) -> PromotionAnswer:
    """Suspend this run until the form is filled in; once it was, return what it says.

    One that ended unanswered asks again, under a key of its own, for what is left of the time.
    """
    evidence = show_evidence(approval.id, needs_person=True)
    left = max(1, round((approval.expires_at - datetime.now(UTC)).total_seconds()))
    return suspend_flow_run(
        wait_for_input=PromotionAnswer.with_initial_data(description=evidence),
        timeout=left,
        key=form_key(flow_run.run_count),
    )


def _ended(approval: Approval) -> State:
    said = f"{approval.adapter_id}: {approval.state} by {approval.who}. {approval.reason}"
    name = approval.state.capitalize()
    if approval.state is ApprovalState.APPROVED:
        routes = move_routes(approval)
        said += "".join(f"\n* {r.agent_name}/{r.track}: {r.stage}" for r in routes)
        name = "Promoted"
    with showing("promotion-answer"):
        create_markdown_artifact(said, key="promotion-answer")
    return Completed(name=name, message=said)


if __name__ == "__main__":
    promote_adapter()
