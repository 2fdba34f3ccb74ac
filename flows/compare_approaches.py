"""Flow ``compare``: approaches side by side, from evaluations that are stored. Asks no model."""

from __future__ import annotations

from prefect import State, flow
from prefect.runtime import flow_run
from prefect.states import Completed

from slm_core.records import Comparison
from tasks._wiring import run_folder
from tasks.evaluation import compare_stored
from tasks.report import publish_comparison


@flow(name="compare")
def compare_approaches(
    evaluation_ids: tuple[str, ...] = (),
    test_set_id: str | None = None,
    run_id: str | None = None,
) -> Comparison | State:
    """Compare teacher, students and adapters on one test set, with paired differences.

    Only what was asked the same questions is compared; the rest is listed as left out.

    Args:
        evaluation_ids: evaluations to take the approaches from (``slm evaluations list``);
            empty takes, of each approach, the newest one.
        test_set_id: the questions to compare on; empty takes those of the newest evaluation.
        run_id: folder name of this run; by default the flow run's id.
    """
    comparison = compare_stored(evaluation_ids, test_set_id)
    if comparison is None:
        text = "Nothing to compare: no evaluation is stored yet. Run eval/cep or eval/baseline."
        return Completed(name="Skipped", message=text)
    publish_comparison(comparison, run_folder(run_id or str(flow_run.id)) / "comparison")
    return comparison


if __name__ == "__main__":
    compare_approaches()
