"""The three files: a stable contract for scripts, the same bytes each time, nothing invented."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from slm_core.records import ARMS, TRACKS
from slm_core.report import LiveAnswer, ReportInput, ReportSpec, write_report
from slm_core.report.document import Document
from slm_core.testing.cases import make_cases, write_details
from slm_core.testing.records import (
    make_adapter,
    make_arm,
    make_claim,
    make_dataset,
    make_decision,
    make_evaluation,
    make_example,
    make_losses,
    make_metric,
    make_training_run,
)
from slm_core.testing.scores import METRIC_NAMES


def full_input(folder: Path, **changes: Any) -> ReportInput:
    """Return the records of a whole run, its details on disk."""
    details = write_details(folder / "details.jsonl", make_cases())
    values: dict[str, Any] = {
        "decision": make_decision(),
        "evaluation": make_evaluation(details_path=str(details)),
        "adapter": make_adapter(),
        "dataset": make_dataset(),
        "training": make_training_run(),
        "claim": make_claim(),
        "calls_captured": 312,
        "timings": {"train": 44.1, "evaluate": 200.2},
        "questions": {make_example(0).id: "Weather in Town 0, 1 days?"},
    }
    return ReportInput(**(values | changes))


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_json_has_the_keys_that_scripts_rely_on(tmp_path: Path) -> None:
    report = read(write_report(full_input(tmp_path), tmp_path / "out").json)
    assert report["outcome"] == "SUCCESS"
    assert report["calls_captured"] == 312
    assert report["examples"] == 280
    assert report["dataset_id"] == make_dataset().id
    assert report["adapter_id"] == make_adapter().id
    for track in TRACKS:
        for arm in ARMS:
            scores = report["tracks"][track]["arms"][arm]
            assert list(scores) == list(METRIC_NAMES[track])
            assert all(set(score) == {"value", "n", "low", "high"} for score in scores.values())
            lenient = report["tracks"][track]["arms_lenient"][arm]
            assert set(lenient) == set(scores)
    strict = report["tracks"]["structured"]["arms"]["adapter"]["field_f1"]
    assert (strict["value"], strict["n"]) == (0.975, 50)
    pair = report["tracks"]["structured"]["paired"]["adapter_vs_teacher"]["exact_match_rate"]
    assert pair["difference"]["value"] == pytest.approx(0.14)
    assert pair["mcnemar_p"] < 0.001
    assert report["tracks"]["toolcall"]["failures"]["student"] == {
        "self-closing tag": 27,
        "arguments in an attribute": 23,
    }
    assert report["tracks"]["toolcall"]["cost_per_1000_usd"]["teacher"] == 4.25
    assert report["tracks"]["toolcall"]["latency"]["adapter"]["p50_seconds"] == 0.061
    assert report["drops"] == {
        "call failed": 9,
        "exact duplicate": 7,
        "response is not in the track's exact format": 4,
    }
    assert [gate["verdict"] for gate in report["gates"]] == ["pass"] * 4
    assert report["next_actions"]


def test_the_json_obeys_its_schema_and_reads_back(tmp_path: Path) -> None:
    paths = write_report(full_input(tmp_path), tmp_path / "out")
    jsonschema.validate(read(paths.json), Document.model_json_schema())
    again = Document.model_validate_json(paths.json.read_text(encoding="utf-8"))
    assert again.challenger == "adapter"


def test_equal_records_give_equal_bytes(tmp_path: Path) -> None:
    first = write_report(full_input(tmp_path), tmp_path / "a")
    second = write_report(full_input(tmp_path), tmp_path / "b")
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes()


def test_an_arm_that_did_not_run_is_null_and_never_zero(tmp_path: Path) -> None:
    evaluation = make_evaluation(arms=("teacher", "student"))
    report = full_input(
        tmp_path, evaluation=evaluation, adapter=None, decision=make_decision(adapter_id=None)
    )
    paths = write_report(report, tmp_path / "out")
    found = read(paths.json)
    assert found["adapter_id"] is None
    for track in TRACKS:
        one = found["tracks"][track]
        for key in ("arms", "arms_lenient", "models", "failures", "latency", "cost_per_1000_usd"):
            assert one[key]["adapter"] is None, key
    assert "| Field F1, macro | 89.3" in paths.markdown.read_text(encoding="utf-8")
    assert "| – | – |" in paths.markdown.read_text(encoding="utf-8")


def test_with_almost_nothing_known_the_report_is_still_written(tmp_path: Path) -> None:
    evaluation = make_evaluation(arms=("student",), paired=())
    report = ReportInput(
        decision=make_decision("FAILURE", gates=(), next_actions=(), adapter_id=None),
        evaluation=evaluation,
    )
    paths = write_report(report, tmp_path / "out")
    found = read(paths.json)
    assert (found["calls_captured"], found["examples"], found["drops"]) == (None, None, None)
    assert found["losses"] == []
    assert "was not compared" in paths.html.read_text(encoding="utf-8")


def test_one_track_alone(tmp_path: Path) -> None:
    evaluation = make_evaluation(arms=(), paired=(), adapter_id="adapter-1").model_copy(
        update={"arms": (make_arm("toolcall", "adapter"),)}
    )
    found = read(write_report(full_input(tmp_path, evaluation=evaluation), tmp_path / "out").json)
    assert set(found["tracks"]) == {"toolcall"}


def test_an_unknown_price_stays_unknown(tmp_path: Path) -> None:
    arms = tuple(
        make_arm(track, arm, cost_per_1000_usd=None if arm == "adapter" else 1.0)
        for track in TRACKS
        for arm in ARMS
    )
    paths = write_report(
        full_input(tmp_path, evaluation=make_evaluation().model_copy(update={"arms": arms})),
        tmp_path / "out",
    )
    found = read(paths.json)
    assert found["tracks"]["structured"]["cost_per_1000_usd"]["adapter"] is None
    assert '<div class="label">Cost per 1,000 calls</div><div class="number">–</div>' in (
        paths.html.read_text(encoding="utf-8")
    )


def test_numbers_that_are_none_are_left_out(tmp_path: Path) -> None:
    broken = make_metric(0.5).model_copy(update={"value": math.nan})
    arm = make_arm("structured", "adapter")
    arm = arm.model_copy(update={"metrics": {**arm.metrics, "field_f1": broken}})
    losses = (
        make_losses(3)[0],
        make_losses(3)[1].model_copy(update={"loss": math.inf}),
    )
    paths = write_report(
        full_input(
            tmp_path,
            evaluation=make_evaluation().model_copy(update={"arms": (arm,)}),
            adapter=make_adapter(losses=losses),
        ),
        tmp_path / "out",
    )
    found = read(paths.json)
    assert "field_f1" not in found["tracks"]["structured"]["arms"]["adapter"]
    assert found["losses"][1]["loss"] is None


def test_prompt_text_is_on_the_page_only(tmp_path: Path) -> None:
    paths = write_report(full_input(tmp_path), tmp_path / "out")
    assert "Weather in Town 0" in paths.html.read_text(encoding="utf-8")
    for path in (paths.json, paths.markdown):
        assert "Town" not in path.read_text(encoding="utf-8")


def test_prompt_text_can_be_kept_off_the_page(tmp_path: Path) -> None:
    paths = write_report(full_input(tmp_path), tmp_path / "out", ReportSpec(cases_per_track=0))
    assert "Town" not in paths.html.read_text(encoding="utf-8")


def test_lone_surrogates_of_a_model_do_not_stop_the_report(tmp_path: Path) -> None:
    live = LiveAnswer(question="\ud800?", answer="\udfff", model="m", seconds=0.1)
    paths = write_report(full_input(tmp_path, live_answer=live), tmp_path / "out")
    for path in paths:
        path.read_text(encoding="utf-8")


def test_a_second_report_replaces_the_first(tmp_path: Path) -> None:
    write_report(full_input(tmp_path), tmp_path / "out")
    paths = write_report(full_input(tmp_path, decision=make_decision("PARTIAL")), tmp_path / "out")
    assert read(paths.json)["outcome"] == "PARTIAL"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "report.html",
        "report.json",
        "report.md",
    ]
