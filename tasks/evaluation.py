"""Arms to scores: the teacher over HTTP, the students in this process."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from slm_core.backends.base import Backend
from slm_core.capture.prices import PriceTable
from slm_core.errors import MissingDependency
from slm_core.evaluation import Arm, evaluate
from slm_core.presets import EvalSpec
from slm_core.prompting.prefix import Variant, get_prefix
from slm_core.records import Adapter, ArmName, Comparison, Evaluation, Metric, utc_now
from slm_core.tracing import RunTrace
from tasks._progress import progress
from tasks._wiring import current_settings, opened_store, step


@step("evaluate the arms")
def evaluate_arms(
    spec: EvalSpec,
    names: tuple[ArmName, ...],
    test_set: Path,
    adapter: Adapter | None,
    out_dir: Path,
    trace: RunTrace,
) -> Evaluation:
    """Score the named arms; answers that ``out_dir`` already holds are not asked for again.

    Each arm becomes a span of ``trace`` with its scores.
    """
    from slm_core.dataset.test_sets import gold_id, read_test_set

    cases = read_test_set(test_set)
    arms = [_arm(name, spec, adapter) for name in names]
    began, ended = utc_now(), dict[str, datetime]()
    with progress("evaluate") as on_progress:

        def note(done: int, total: int, arm: str) -> None:
            ended[arm] = utc_now()
            on_progress(done, total, arm)

        evaluation = evaluate(
            cases,
            arms,
            spec.evaluation,
            out_dir,
            test_set_id=gold_id(cases),
            adapter_id=adapter.id if adapter and "adapter" in names else None,
            on_progress=note,
        )
    for arm in arms:
        trace.record(
            arm.name,
            started_at=began,
            ended_at=ended[arm.name],
            metrics=_metrics(evaluation, arm.name),
        )
        began = ended[arm.name]
    with opened_store() as store:
        return store.evaluations.save(evaluation)


@step("compare the approaches")
def compare_stored(evaluation_ids: tuple[str, ...], test_set_id: str | None) -> Comparison | None:
    """Put approaches of the stored evaluations side by side; None while there is none.

    Without ids, the newest evaluation of each approach is taken.
    """
    from slm_core.evaluation.approaches import compare_approaches

    with opened_store() as store:
        if evaluation_ids:
            found = [store.evaluations.get(one) for one in dict.fromkeys(evaluation_ids)]
        else:
            found = store.evaluations.list()
    return compare_approaches(found, test_set_id) if found else None


def _arm(name: ArmName, spec: EvalSpec, adapter: Adapter | None) -> Arm:
    if name == "teacher":
        teacher = current_settings().teacher()
        return Arm(name, lambda: _open_teacher(spec), f"{teacher.model} at {teacher.kind}")
    if name == "adapter":
        if adapter is None:
            raise ValueError("the arm 'adapter' needs an adapter")
        return Arm(
            name,
            lambda: _open_student(spec, adapter, spec.cep),
            f"{Path(spec.student_model).name} + {adapter.id}",
        )
    variant = spec.cep if name == "student_cep" else None
    prefix = get_prefix(variant)
    label = Path(spec.student_model).name + (f" + {prefix.id}" if prefix else "")
    return Arm(name, lambda: _open_student(spec, None, variant), label)


def _open_student(spec: EvalSpec, adapter: Adapter | None, variant: Variant | None) -> Backend:
    try:
        from slm_core.backends.local import LocalModel
    except ImportError as error:
        raise MissingDependency(
            f"A local model needs torch and transformers ({error}). "
            "Install them: pip install 'slm-swap[train]'."
        ) from error
    return LocalModel(
        spec.student_model,
        adapter.path if adapter else None,
        get_prefix(variant),
        threads=spec.threads or current_settings().torch_threads,
        batch_size=spec.evaluation.batch_size,
        usd_per_hour=spec.student_usd_per_hour,
    )


def _open_teacher(spec: EvalSpec) -> Backend:
    from slm_core.backends.openai_http import OpenAiBackend

    teacher = current_settings().teacher()
    return OpenAiBackend(
        teacher.model,
        api_key=teacher.api_key.get_secret_value(),
        base_url=teacher.endpoint or None if teacher.kind == "openai" else None,
        azure_endpoint=teacher.endpoint if teacher.kind == "azure" else None,
        api_version=teacher.api_version if teacher.kind == "azure" else None,
        concurrency=spec.teacher_concurrency,
        usd_per_million=PriceTable().usd_per_million(teacher.model, utc_now().date()),
    )


def _metrics(evaluation: Evaluation, name: ArmName) -> dict[str, Metric]:
    """Return ``track/arm/metric`` to its strict value with interval."""
    return {
        f"{arm.track}/{arm.arm}/{metric}": value
        for arm in evaluation.arms
        if arm.arm == name
        for metric, value in arm.metrics.items()
    }
