"""Arms to scores."""

from __future__ import annotations

import logging
from datetime import datetime
from pathlib import Path

from slm_core.errors import DatasetError, LeakFound, RecordNotFound
from slm_core.evaluation import evaluate
from slm_core.presets import EvalSpec
from slm_core.records import Adapter, ArmName, Comparison, Evaluation, Metric, utc_now
from slm_core.tracing import RunTrace
from tasks._arms import named_arm
from tasks._progress import progress
from tasks._wiring import opened_store, step
from tasks.fan_out import answer_in_shards

log = logging.getLogger(__name__)


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

    Raises:
        LeakFound: the adapter learned from a question or conversation of ``test_set``.
    """
    from slm_core.dataset.test_sets import gold_id, read_test_set

    cases = read_test_set(test_set)
    if adapter is not None and "adapter" in names:
        _refuse_leak(adapter, test_set)
    arms = [named_arm(name, spec, adapter) for name in names]
    if spec.shards > 1:
        answer_in_shards(spec, names, test_set, adapter, out_dir)
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


def _refuse_leak(adapter: Adapter, test_set: Path) -> None:
    """Raise LeakFound where the adapter is to be scored on what it learned.

    Adapters outlive the datasets that they learned from, and come from other machines. Where the
    dataset cannot be read, the log says that nothing was compared.
    """
    from slm_core.dataset.leaks import check_leaks

    try:
        with opened_store() as store:
            dataset = store.datasets.get(adapter.dataset_id)
        # Near duplicates may be wanted: the dataset's own plan, which said so, is not stored.
        check_leaks(dataset.path, [test_set], near_duplicates="ignore")
    except LeakFound:
        raise
    except (RecordNotFound, DatasetError) as error:
        log.warning(
            "test set not compared with training rows adapter=%s dataset=%s error=%s",
            adapter.id,
            adapter.dataset_id,
            type(error).__name__,
        )


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


def _metrics(evaluation: Evaluation, name: ArmName) -> dict[str, Metric]:
    """Return ``track/arm/metric`` to its strict value with interval."""
    return {
        f"{arm.track}/{arm.arm}/{metric}": value
        for arm in evaluation.arms
        if arm.arm == name
        for metric, value in arm.metrics.items()
    }
