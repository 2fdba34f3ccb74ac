"""Flow ``retrain``: a claim of captured calls becomes an adapter, a verdict and a route."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from prefect import State, flow
from prefect.artifacts import create_markdown_artifact
from prefect.exceptions import TerminationSignal
from prefect.runtime import flow_run
from prefect.states import Completed

from slm_core.backends.model_folder import is_hub_id
from slm_core.presets import RETRAIN_PRESETS, RetrainPreset, RetrainSpec
from slm_core.records import Claim, ClaimState, Decision, Route, RunState, Stage
from slm_core.report import ReportInput
from slm_core.training.orders import Order, Part, state_after
from tasks._artifacts import showing
from tasks._wiring import (
    current_settings,
    opened_store,
    order_book,
    own_student,
    require_tracing,
    run_folder,
    traced,
)
from tasks.capture import finish_claim, release_claim, take_claim
from tasks.dataset import build_dataset, make_test_set, read_questions
from tasks.decision import decide_swap
from tasks.evaluation import evaluate_arms
from tasks.promotion import start_promotion
from tasks.report import publish_report
from tasks.resuming import STOPPING_SECONDS, is_cancelled, noting_stops
from tasks.serving import promote_adapter
from tasks.training import check_base_model, ready_gpus, train_adapter

BASELINE = ("teacher", "student", "student_cep")


@flow(name="retrain")
def retrain_student(
    claim_id: str | None = None,
    preset: RetrainPreset = "nano",
    reason: str = "manual",
    run_id: str | None = None,
    overrides: RetrainSpec | None = None,
) -> State | ReportInput:
    """Train on one claim, score the result against the teacher, decide, report, promote.

    Retrying the run goes on where it stopped: same dataset, last checkpoint, missing answers.

    Args:
        claim_id: the claim to train on; empty takes the oldest that nobody holds.
        preset: name of the plan.
        reason: who asked, for the record.
        run_id: folder and owner name of this run; by default the flow run's id.
        overrides: a whole plan in place of the preset.
    """
    require_tracing()
    run_id = run_id or str(flow_run.id)
    book = order_book()
    known = book.find(run_id)
    spec = _with_own_student(overrides or RETRAIN_PRESETS[preset])
    if known is not None and overrides is None:
        spec = RetrainSpec.model_validate(known.spec)  # the preset may have changed since
    claim = take_claim(claim_id or (known.claim_id if known else None), run_id)
    if claim is None:
        if known is not None and known.state is not RunState.COMPLETED:
            if _has_closed_its_claim(known):
                book.note(run_id, state=RunState.COMPLETED, why="")
            else:
                book.note(run_id, state=RunState.FAILED, why="another run trained on its claim")
        return _skipped(claim_id)
    order = known or Order(
        run_id=run_id,
        flow="retrain",
        spec={},
        reason=reason,
    )
    order = order.model_copy(
        update={
            "spec": spec.model_dump(mode="json"),
            "claim_id": claim.id,
            "flow_run_id": flow_run.root_flow_run_id,
        }
    )
    try:
        with book.carry_out(order, wait_seconds=STOPPING_SECONDS), noting_stops(order):
            return _retrain(spec, claim, run_id, reason)
    except TerminationSignal:
        # Only its worker was stopped, perhaps; then this run is gone on with, and keeps its claim.
        if is_cancelled(order):
            with opened_store() as store:  # not by a task: none may start now
                store.claims.release(claim.id, run_id)
        raise
    except Exception as error:
        # A run that can be resumed keeps the claim: Retry in the dashboard goes on with it.
        if state_after(error) is not RunState.INTERRUPTED:
            release_claim(claim, run_id)
        raise


def _retrain(spec: RetrainSpec, claim: Claim, run_id: str, reason: str) -> ReportInput:
    folder = run_folder(run_id)
    clock = _Clock()
    with traced("retrain", run_id, claim=claim.id, reason=reason) as trace:
        with trace.span("make the test set") as span, clock("test set"):
            test_set = make_test_set(spec.eval.test_set)
            span.update(output=str(test_set))
        with trace.span("build the dataset") as span, clock("dataset"):
            dataset = build_dataset(spec, claim, run_id, test_set)
            span.update(
                output={"dataset": dataset.id, "path": dataset.path}, metadata=dataset.drops
            )
        gpus = ready_gpus(spec.training)
        if is_hub_id(spec.training.base_model):
            check_base_model(spec.training, gpus)
        with trace.span("evaluate the baseline") as span, clock("baseline"):
            arms = tuple(arm for arm in spec.eval.arms if arm in BASELINE)
            baseline = evaluate_arms(spec.eval, arms, test_set, None, folder / "evaluation", trace)
            span.update(output={"evaluation": baseline.id})
        with trace.span("train the adapter") as span, clock("training"):
            part = Part(run_id=run_id, training=spec.training)
            order_book().note(run_id, dataset_id=dataset.id, parts=(part,))
            used = tuple(gpu.uuid for gpu in gpus[: spec.training.world_size])
            adapter = train_adapter(spec.training, dataset, run_id, used)
            span.update(output={"adapter": adapter.id, "path": adapter.path})
        with trace.span("evaluate all arms") as span, clock("evaluation"):
            evaluation = evaluate_arms(
                spec.eval, spec.eval.arms, test_set, adapter, folder / "evaluation", trace
            )
            span.update(output={"evaluation": evaluation.id})
        with trace.span("decide") as span:
            decision = decide_swap(spec.eval.decision, evaluation)
            span.update(output={"decision": decision.id, "outcome": decision.outcome})
        shown = decision
        routes: list[Route] = []
        if decision.outcome == "SUCCESS":
            with trace.span("promote the adapter") as span:
                routes = promote_adapter(adapter, decision, dataset, run_id, live=spec.auto_promote)
                span.update(output=[f"{r.agent_name}/{r.track}: {r.stage}" for r in routes])
            shown = _after_promotion(decision, routes)
        with opened_store() as store:
            report = ReportInput(
                decision=shown,
                evaluation=evaluation,
                adapter=adapter,
                dataset=dataset,
                training=store.runs.get(run_id),
                claim=claim,
                run_id=run_id,
                trace_id=trace.trace_id,
                calls_captured=store.calls.count(),
                drops=dict(Counter(dataset.drops) + Counter(store.calls.unusable())),
                capture_stats=tuple(store.calls.stats()),
                seed=spec.eval.test_set.seed,
                timings=clock.seconds,
                questions=read_questions(test_set),
            )
        with trace.span("publish the report") as span:
            paths = publish_report(report, folder / "report", spec.eval.report)
            span.update(output=str(paths.html))
        trace.update(output={"outcome": decision.outcome, "report": str(paths.json)})
    if any(route.stage is Stage.CANDIDATE for route in routes):
        start_promotion(adapter.id, spec.promotion)
    # Last, for a run that is killed before it begins again only while it holds its claim.
    finish_claim(claim, run_id)
    return report


def _has_closed_its_claim(order: Order) -> bool:
    """Whether a run came to its end, and died before it could say so."""
    if order.claim_id is None:
        return False
    with opened_store() as store:
        claim = store.claims.get(order.claim_id)
    return (claim.state, claim.owner) == (ClaimState.DONE, order.run_id)


def _with_own_student(spec: RetrainSpec) -> RetrainSpec:
    """Return the plan for the base model that the settings name, if they name one."""
    student = own_student()
    if student is None:
        return spec
    return spec.model_copy(
        update={
            "training": spec.training.model_copy(update={"base_model": student}),
            "eval": spec.eval.model_copy(update={"student_model": student}),
        }
    )


def _after_promotion(decision: Decision, routes: Sequence[Route]) -> Decision:
    """Return the decision as the report shows it: what is left to do now."""
    live = [f"{r.agent_name}/{r.track}" for r in routes if r.stage is Stage.LIVE]
    if not live:
        return decision
    done = (
        f"{decision.adapter_id} answers for {' and '.join(live)} now. "
        "Watch it with `slm calls stats`; `slm routes roll-back` undoes it."
    )
    return decision.model_copy(update={"next_actions": (done,)})


def _skipped(claim_id: str | None) -> State:
    if claim_id is not None:
        text = f"Nothing to do: claim {claim_id} is done or held by another run."
    else:
        settings = current_settings()
        with opened_store() as store:
            waiting = store.calls.waiting()
            held = store.claims.list(ClaimState.RUNNING)
        missing = max(0, settings.retrain_threshold - waiting)
        text = (
            f"Nothing to do: {waiting} usable calls wait, {missing} more make a claim "
            f"of {settings.retrain_threshold}."
        )
        text += "".join(f" Claim {claim.id} is held by run {claim.owner}." for claim in held)
    with showing("skipped"):
        create_markdown_artifact(text, key="skipped")
    return Completed(name="Skipped", message=text)


class _Clock:
    """Seconds per stage, in the order in which they ran."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, stage: str) -> _Clock:
        self._stage = stage
        return self

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.seconds[self._stage] = round(time.monotonic() - self._began, 2)


if __name__ == "__main__":
    retrain_student()
