"""The page of a training says what was tried, why, and what to do next."""

from __future__ import annotations

from datetime import UTC, datetime

from slm_core.records import Attempt, Fault
from slm_core.report.training_page import (
    LiveTraining,
    attempt_rows,
    live_markdown,
    training_markdown,
)
from slm_core.testing.records import (
    make_adapter,
    make_dataset,
    make_losses,
    make_training_run,
)

BEGAN = datetime(2026, 3, 1, tzinfo=UTC)


def test_the_ladder_is_shown_as_taken() -> None:
    plan = {"pass_rows": 4, "max_length": 2048, "world_size": 4, "quantization": "none"}
    smaller = plan | {"quantization": "nf4", "gradient_checkpointing": True, "changes": ["nf4"]}
    fault = Fault(kind="out_of_gpu_memory", message="23.3 of 23.7 GiB in use")
    attempts = (
        Attempt(number=1, started_at=BEGAN, ended_at=BEGAN, last_step=7, plan=plan, fault=fault),
        Attempt(
            number=2,
            started_at=BEGAN,
            first_step=7,
            plan=smaller,
            reason="memory ran out",
            recoveries=("split step 9",),
        ),
    )
    first, second = attempt_rows(attempts)
    assert first["plan"] == "4 rows a pass; 2048 tokens a row at most; 4 workers"
    assert first["why this plan"] == "first plan"
    assert first["ended by"] == "out_of_gpu_memory: 23.3 of 23.7 GiB in use"
    assert "gradient checkpointing; nf4" in second["plan"]
    assert (first["steps"], second["steps"]) == ("0 to 7", "from 7 on")
    assert second["why this plan"] == "memory ran out"
    assert second["changed by the worker"] == "split step 9"
    assert second["ended by"] == "not yet"


def test_the_page_has_figures_attempts_curve_and_the_next_command() -> None:
    adapter, run, dataset = make_adapter(), make_training_run(), make_dataset()
    page = training_markdown([(adapter, run)], dataset)
    assert f"prefect deployment run eval/cep -p adapter_id={adapter.id}" in page
    assert dataset.id in page
    assert "out_of_memory" in page.replace("\\_", "_")
    assert page.count("xychart-beta") == 1
    points = page.split("line [")[1].split("]")[0].split(",")
    assert 2 <= len(points) <= 40
    assert float(points[0]) == round(adapter.losses[0].loss, 4)


def live(**changes: object) -> str:
    values: dict[str, object] = {
        "run_id": "run-1",
        "points": (),
        "total_steps": None,
        "eta_seconds": None,
        "gpu_bytes": None,
        "cost_usd": None,
        "attempts": (),
        "links": {"TensorBoard": "`tensorboard --logdir runs`"},
    }
    return live_markdown(LiveTraining(**(values | changes))).replace("\u202f", " ")  # type: ignore[arg-type]


def test_a_training_that_goes_on_shows_how_far_it_is_and_where_to_look() -> None:
    points = make_losses(40, val_every=20)
    page = live(
        points=points,
        total_steps=160,
        eta_seconds=3900.0,
        gpu_bytes=66 * 2**30,
        cost_usd=1.5,
        attempts=make_training_run().attempts,
    )
    best = min(points, key=lambda point: point.loss)
    assert "| step | 40 of 160 (25 %) |" in page
    assert "| time left | 1 h 5 min |" in page
    assert f"at best {best.loss:.4f} at step {best.step} |" in page
    assert "| GPU memory at most | 66.0 GiB |" in page
    assert "| cost so far | $1.50 |" in page
    assert f'x-axis "step" {points[0].step} --> {points[-1].step}' in page
    assert "out\\_of\\_memory" in page or "out_of_memory" in page
    assert "- TensorBoard: `tensorboard --logdir runs`" in page


def test_before_its_first_step_a_training_says_so_and_guesses_nothing() -> None:
    page = live()
    assert "none yet: the worker loads the model" in page
    assert "mermaid" not in page
    assert "cost" not in page
