"""Flow ``eval``: score the arms on both tracks, compare, decide, report. Changes no route."""

from __future__ import annotations

from prefect import flow
from prefect.runtime import flow_run

from slm_core.presets import EVAL_PRESETS, EvalPreset, EvalSpec, TestSetSpec
from slm_core.records import ArmName
from slm_core.report import ReportInput
from tasks._wiring import opened_store, own_student, require_tracing, run_folder, traced
from tasks.dataset import make_test_set, read_left_out, read_questions
from tasks.decision import decide_swap
from tasks.evaluation import evaluate_arms
from tasks.report import publish_report
from tasks.training import find_adapter

BERKELEY = "Berkeley Function-Calling Leaderboard"


@flow(name="eval")
def evaluate_model(
    preset: EvalPreset = "cep",
    adapter_id: str | None = None,
    berkeley_folder: str | None = None,
    run_id: str | None = None,
    overrides: EvalSpec | None = None,
) -> ReportInput:
    """Evaluate with or without the context prefix and publish a report.

    Args:
        preset: ``cep`` scores teacher, student, student with prefix and the adapter;
            ``baseline`` scores teacher and bare student; ``berkeley`` scores the arms of ``cep``
            on questions in the format of the Berkeley Function-Calling Leaderboard.
        adapter_id: which adapter; empty takes the one trained last. While there is none, the
            student with prefix is judged in its place.
        berkeley_folder: folder on the worker with the leaderboard's files (``BFCL_*.json`` and
            ``possible_answer``), to be asked in place of the preset's questions. Left empty, the
            preset ``berkeley`` asks a small sample that ships with SLM Swap.
        run_id: folder name of this run; by default the flow run's id.
        overrides: a whole plan in place of the preset.
    """
    require_tracing()
    run_id = run_id or str(flow_run.id)
    spec = overrides or EVAL_PRESETS[preset]
    if berkeley_folder is not None:
        spec = spec.model_copy(
            update={
                "test_set": TestSetSpec(berkeley=berkeley_folder),
                "report": spec.report.model_copy(update={"title": BERKELEY}),
            }
        )
    if (student := own_student()) is not None:
        spec = spec.model_copy(update={"student_model": student})
    adapter = find_adapter(adapter_id) if "adapter" in spec.arms else None
    spec, arms = _fit(spec, has_adapter=adapter is not None)
    folder = run_folder(run_id)
    with traced("eval", run_id, preset=preset) as trace:
        test_set = make_test_set(spec.test_set)
        with trace.span("evaluate the arms") as span:
            evaluation = evaluate_arms(spec, arms, test_set, adapter, folder / "evaluation", trace)
            span.update(output={"evaluation": evaluation.id, "test_set": str(test_set)})
        with trace.span("decide") as span:
            decision = decide_swap(spec.decision, evaluation)
            span.update(output={"decision": decision.id, "outcome": decision.outcome})
        with opened_store() as store:
            report = ReportInput(
                decision=decision,
                evaluation=evaluation,
                adapter=adapter,
                run_id=run_id,
                trace_id=trace.trace_id,
                calls_captured=store.calls.count(),
                drops=read_left_out(test_set),
                capture_stats=tuple(store.calls.stats()),
                seed=spec.test_set.seed,
                questions=read_questions(test_set),
            )
        publish_report(report, folder / "report", spec.report)
        trace.update(output={"outcome": decision.outcome})
    return report


def _fit(spec: EvalSpec, *, has_adapter: bool) -> tuple[EvalSpec, tuple[ArmName, ...]]:
    """Return the plan and the arms that can be scored now."""
    if has_adapter or "adapter" not in spec.arms:
        return spec, spec.arms
    arms: tuple[ArmName, ...] = tuple(arm for arm in spec.arms if arm != "adapter")
    comparisons = (*spec.evaluation.comparisons, ("student_cep", "teacher"))
    return spec.model_copy(
        update={
            "evaluation": spec.evaluation.model_copy(update={"comparisons": comparisons}),
            "decision": spec.decision.model_copy(update={"candidate": "student_cep"}),
        }
    ), arms


if __name__ == "__main__":
    evaluate_model()
