"""Files in the leaderboard's format become test rows, or are left out with a reason."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from slm_core.dataset.berkeley import BerkeleyRows, Unusable, load_berkeley
from slm_core.errors import DatasetError
from slm_core.evaluation.scoring import check_gold, score_row
from slm_core.prompting.formats import NO_CALL_TEXT, render_completion
from slm_core.records import Example, ToolUse
from slm_core.testing.berkeley_sample import SAMPLE

TOOL = {
    "name": "tide.at",
    "description": "Tell the height of the tide.",
    "parameters": {
        "type": "dict",
        "properties": {
            "harbour": {"type": "string", "description": "Which harbour."},
            "metres": {"type": "float", "description": "Depth."},
            "spot": {"type": "any", "description": "Anything."},
        },
        "required": ["harbour"],
    },
}


def row(row_id: str, **changes: Any) -> dict[str, Any]:
    question = [[{"role": "user", "content": f"What is the tide at {row_id}?"}]]
    return {"id": row_id, "question": question, "function": [TOOL]} | changes


def write(
    folder: Path, category: str, rows: list[dict[str, Any]], answers: dict[str, Any] | None
) -> None:
    (folder / "possible_answer").mkdir(exist_ok=True)
    name = f"BFCL_v4_{category}.json"
    (folder / name).write_text("".join(json.dumps(one) + "\n" for one in rows))
    if answers is not None:
        lines = [json.dumps({"id": key, "ground_truth": value}) for key, value in answers.items()]
        (folder / "possible_answer" / name).write_text("\n".join(lines) + "\n")


def one(rows: BerkeleyRows, row_id: str) -> Example:
    (found,) = (example for example in rows.examples if example.id == row_id)
    return found


def test_a_row_becomes_an_example_on_each_track(tmp_path: Path) -> None:
    gold = [{"tide.at": {"harbour": ["Ulvik", "ulvik"], "metres": ["", 2.5]}}]
    write(tmp_path, "simple", [row("q0")], {"q0": gold})
    found = load_berkeley(tmp_path)
    assert [example.id for example in found.examples] == ["q0/structured", "q0/toolcall"]
    assert found.left_out == []
    case = one(found, "q0/toolcall")
    assert case.calls == (ToolUse(name="tide_at", arguments={"harbour": "Ulvik"}),)
    assert case.accepted == ({"harbour": ["Ulvik", "ulvik"], "metres": [None, 2.5]},)
    assert case.tools[0].parameters["type"] == "object"
    assert case.tools[0].parameters["properties"]["metres"]["type"] == "number"
    assert "type" not in case.tools[0].parameters["properties"]["spot"]
    assert (case.domain, case.conversation_id) == ("simple", "q0")
    assert "<tool_call" in case.prompt[0].content
    check_gold(found.examples)


def test_every_accepted_value_is_right_and_others_are_not(tmp_path: Path) -> None:
    gold = [{"tide.at": {"harbour": ["Ulvik", "ulvik"], "metres": ["", 2.5]}}]
    write(tmp_path, "simple", [row("q0")], {"q0": gold})
    case = one(load_berkeley(tmp_path), "q0/toolcall")

    def exact(**arguments: Any) -> bool:
        made = ToolUse(name="tide_at", arguments=arguments)
        return score_row(case, render_completion("toolcall", [made]))[0].exact

    assert exact(harbour="ulvik")
    assert exact(harbour="Ulvik", metres=2.5)
    assert not exact(harbour="Ulvik", metres=3.0)
    assert not exact(harbour="Bodo")


def test_questions_that_no_tool_fits_need_no_answer_file(tmp_path: Path) -> None:
    write(tmp_path, "live_irrelevance", [row("q0")], None)
    case = one(load_berkeley(tmp_path, ("toolcall",)), "q0/toolcall")
    assert (case.calls, case.completion) == ((), NO_CALL_TEXT)


def test_what_cannot_be_scored_is_left_out_with_its_reason(tmp_path: Path) -> None:
    call = {"tide.at": {"harbour": ["Ulvik"]}}
    several = row("turns", question=[[{"role": "user", "content": "a"}]] * 2)
    odd_tool = {**TOOL, "parameters": {"type": "HashMap", "properties": {}}}
    rows = [
        row("two"),
        several,
        row("open"),
        row("wrong"),
        row("java", function=[odd_tool]),
        {"id": "odd", "function": []},
        row("good"),
    ]
    answers = {
        "two": [call, call],
        "turns": [call],
        "wrong": [{"tide.at": {"harbour": [7]}}],
        "java": [call],
        "odd": [call],
        "good": [call],
    }
    write(tmp_path, "mixed", rows, answers)
    found = load_berkeley(tmp_path)
    left = {(one.row_id, one.track): one.reason for one in found.left_out}
    assert left[("two", "structured")] is Unusable.SEVERAL_CALLS
    assert ("two", "toolcall") not in left
    assert left[("turns", "toolcall")] is Unusable.SEVERAL_TURNS
    assert left[("open", "toolcall")] is Unusable.NO_ANSWER
    assert left[("wrong", "structured")] is Unusable.GOLD
    assert left[("java", "toolcall")] is Unusable.GOLD
    assert left[("odd", "toolcall")] is Unusable.UNREADABLE
    assert len(found.examples) + len(found.left_out) == 2 * len(rows)
    detail = next(one.detail for one in found.left_out if one.row_id == "wrong")
    assert "7 is not of type 'string'" in detail


@pytest.mark.parametrize("content", [None, "", '{"id": "q0", "question": [[]]}\n'])
def test_a_folder_without_a_usable_row_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "BFCL_v4_simple.json").write_text(content)
    with pytest.raises(DatasetError, match=r"BFCL_\*|None of the"):
        load_berkeley(tmp_path)


def test_a_missing_folder_says_what_belongs_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"is no folder.*possible_answer"):
        load_berkeley(tmp_path / "nowhere")


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "BFCL_v4_simple.json").write_text("{}\nnot JSON\n")
    with pytest.raises(DatasetError, match="line 2 is not JSON"):
        load_berkeley(tmp_path)


def test_the_shipped_sample_is_usable_on_both_tracks() -> None:
    found = load_berkeley(SAMPLE)
    check_gold(found.examples)
    assert Counter(example.track for example in found.examples) == {
        "structured": 10,
        "toolcall": 12,
    }
    assert {one.reason for one in found.left_out} == {Unusable.SEVERAL_CALLS}
    assert all(example.id.startswith("sample_") for example in found.examples)
