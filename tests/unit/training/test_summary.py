"""The summary of a run: right sums, honest gaps, and nothing that is not a number or an id."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from slm_core.records import Attempt, Fault, utc_now
from slm_core.training.convergence import EarlyStopping, Note
from slm_core.training.events import StepEvent
from slm_core.training.plan import first_plan
from slm_core.training.rows import Row, Rows
from slm_core.training.spec import TrainingSpec
from slm_core.training.summary import Finished, build_summary

NOW = datetime(2026, 3, 14, tzinfo=UTC)
KEYS_THAT_CARDS_AND_REPORTS_READ = set(
    "steps epochs examples val_examples tokens supervised_tokens seconds tokens_per_second "
    "first_loss last_loss best_loss val_loss best_val_loss attempts dropped too_long_ids "
    "trainable_parameters device precision threads peak_memory_bytes peak_gpu_bytes".split()
)


def event(step: int, loss: float, val_loss: float | None = None) -> StepEvent:
    return StepEvent(
        step=step,
        epoch=step / 10,
        loss=loss,
        grad_norm=1.0,
        learning_rate=1e-4,
        tokens_per_second=10.0,
        val_loss=val_loss,
        total_steps=30,
        eta_seconds=1.0,
    )


def finished(**changes: Any) -> Finished:
    spec = TrainingSpec(base_model="student")
    row = Row("row-1", [1, 2, 3], [False, True, True])
    values: dict[str, Any] = {
        "spec": spec,
        "plan": first_plan(spec),
        "train": Rows([row, row], ["long-1"], 3),
        "val": Rows([row], ["long-2"], 0),
        "steps": 30,
        "tokens": 9_000,
        "supervised_tokens": 3_000,
        "seconds": 60.0,
        "gpu_seconds": 60.0,
        "events": [event(10, 2.0, 1.5), event(20, 0.5, 1.0), event(30, 0.7, 1.2)],
        "attempt": 1,
        "trainable_parameters": 128,
        "device": "NVIDIA H200",
        "precision": "bfloat16",
        "threads": 4,
        "peak_memory_bytes": 1_000,
        "peak_gpu_bytes": 2_000,
    }
    return Finished(**(values | changes))


def test_it_has_every_key_and_is_plain_json() -> None:
    summary = build_summary(finished())
    assert set(summary) >= KEYS_THAT_CARDS_AND_REPORTS_READ
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_losses_rates_and_perplexity() -> None:
    summary = build_summary(finished())
    assert (summary["first_loss"], summary["last_loss"], summary["best_loss"]) == (2.0, 0.7, 0.5)
    assert (summary["val_loss"], summary["best_val_loss"]) == (1.2, 1.0)
    assert summary["val_perplexity"] == pytest.approx(math.exp(1.2))
    assert summary["perplexity"] == pytest.approx(math.exp(0.7))
    assert summary["tokens_per_second"] == 150.0
    assert summary["supervised_tokens_per_second"] == 50.0
    assert (summary["examples"], summary["val_examples"]) == (2, 1)
    assert summary["dropped"] == {"too_long": 2, "other_track": 3, "uncuttable": 0}
    assert summary["too_long_ids"] == ["long-1", "long-2"]


def test_mfu_needs_flops_and_a_known_gpu() -> None:
    flops = 0.4 * 989e12 * 60
    assert build_summary(finished(flops=flops))["mfu"] == pytest.approx(0.4)
    # Two GPUs for half of the time, whatever the last attempt had.
    assert build_summary(finished(flops=flops, gpu_seconds=90.0))["mfu"] == pytest.approx(0.2667)
    for unknown in ({"flops": None}, {"device": "cpu"}, {"precision": "float32"}):
        assert build_summary(finished(**({"flops": flops} | unknown)))["mfu"] is None


def test_cost_is_that_of_the_whole_time_at_the_price() -> None:
    assert build_summary(finished())["cost_usd"] is None
    priced = build_summary(finished(usd_per_hour=3.6, seconds=500.0))
    assert (priced["cost_usd"], priced["usd_per_hour"]) == (0.5, 3.6)


def test_the_time_is_that_of_the_attempts_where_it_is_known() -> None:
    killed = Fault(kind="trainer_killed", message="")
    attempts = [
        Attempt(number=1, started_at=NOW, ended_at=NOW + timedelta(seconds=70)),
        Attempt(number=2, started_at=NOW, ended_at=NOW + timedelta(days=3), fault=killed),
        Attempt(number=3, started_at=utc_now() - timedelta(seconds=30)),
    ]
    seconds = build_summary(finished(attempts=attempts))["wall_seconds"]
    assert 100 <= seconds < 130
    # Never less than the steps took.
    assert build_summary(finished(seconds=500.0, attempts=attempts))["wall_seconds"] == 500
    assert build_summary(finished())["wall_seconds"] == 60


def test_an_early_stop_says_so_and_reports_the_published_weights() -> None:
    early = EarlyStopping(1)
    for one in finished().events:
        assert one.val_loss is not None
        early.add(one.step, one.val_loss)
    assert early.reason
    summary = build_summary(
        finished(early_stopping=early, stop_reason=early.reason, published_step=early.best_step)
    )
    assert summary["stop_reason"] == "no better validation loss for 1 validations"
    assert (summary["best_step"], summary["published_step"], summary["val_loss"]) == (20, 20, 1.0)
    whole = build_summary(finished())
    assert (whole["stop_reason"], whole["published_step"]) == ("epochs done", 30)


def test_what_went_wrong_is_counted_by_kind() -> None:
    def attempt(number: int, kind: str | None) -> Attempt:
        fault = Fault(kind=kind, message="secret words") if kind else None
        return Attempt(number=number, started_at=NOW, fault=fault)

    kinds = ["out_of_gpu_memory", "hung", "out_of_gpu_memory", None]
    summary = build_summary(
        finished(
            attempt=4,
            attempts=[attempt(number, kind) for number, kind in enumerate(kinds, start=1)],
            recoveries=["pass split in halves"],
            notes=[Note(7, "plateau", "it stays")],
        )
    )
    assert summary["faults"] == {"out_of_gpu_memory": 2, "hung": 1}
    assert summary["attempts"] == 4
    assert summary["recoveries"] == ["pass split in halves"]
    assert summary["notes"] == ["step 7: it stays"]


def test_what_was_cut_and_what_could_not_be_is_counted_over_both_splits() -> None:
    row = Row("row-1", [1, 2, 3], [False, True, True])
    train = Rows([row], ["long-1"], 0, cut_rows=3, cut_tokens=700, uncuttable=("u-1", "u-2"))
    val = Rows([row], [], 0, cut_rows=1, cut_tokens=50, uncuttable=("u-3",))
    summary = build_summary(finished(train=train, val=val))
    assert (summary["cut"], summary["cut_tokens"]) == (4, 750)
    assert summary["dropped"] == {"too_long": 1, "other_track": 0, "uncuttable": 3}
    assert summary["uncuttable_ids"] == ["u-1", "u-2", "u-3"]


def test_a_run_without_validation_rows_claims_nothing() -> None:
    summary = build_summary(finished(events=[event(1, 2.0)], val=Rows([], [], 0), steps=1))
    for key in ("val_loss", "best_val_loss", "val_perplexity", "best_step", "mfu", "cost_usd"):
        assert summary[key] is None, key
