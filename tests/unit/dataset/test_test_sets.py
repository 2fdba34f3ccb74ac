"""Test sets from outside: gold must pass its own scorer, and stay as it was frozen."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from slm_core.dataset.examples import examine
from slm_core.dataset.test_sets import (
    gold_id,
    gold_problem,
    manifest_path,
    read_test_set,
    write_test_set,
)
from slm_core.errors import DatasetError
from slm_core.prompting.formats import NO_CALL_TEXT, render_completion
from slm_core.records import Example, Message, Tool, ToolUse

OSLO = ToolUse(name="get_weather", arguments={"city": "Oslo", "days": 1})


@pytest.fixture
def row(make_call) -> Example:
    return examine(make_call(tool_calls=(OSLO,)))


def test_a_set_is_read_back_as_it_was_written(row, make_call, tmp_path):
    rows = [
        row.model_copy(update={"accepted": ({"days": [None, 2], "city": ["oslo"]},)}),
        examine(make_call(2, track="structured")),
        examine(make_call(4, response=NO_CALL_TEXT)),
    ]

    gold = write_test_set(rows, tmp_path / "gold.jsonl")

    assert read_test_set(tmp_path / "gold.jsonl") == rows
    assert gold.id == gold_id(rows) == gold_id(read_test_set(gold.path))
    assert gold.rows == 3
    assert gold_id(rows[:2]) != gold.id
    assert json.loads(manifest_path(gold.path).read_text())["id"] == gold.id


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"completion": '<tool_call name="get_weather">{"city": "Oslo"}</tool_call>'}, "encode"),
        ({"completion": "Oslo"}, "exact format: prose"),
        ({"completion": NO_CALL_TEXT}, "encode"),
        ({"calls": ()}, "encode"),
        (
            {
                "completion": '<tool_call name="get_weather">{"city": "Oslo", "days": true}'
                "</tool_call>"
            },
            "encode",
        ),
        ({"tools": ()}, "'get_weather'"),
        ({"tools": (Tool(name="get_weather", parameters={"type": "dict"}),)}, "type"),
        (
            {"tools": (Tool(name="get_weather", parameters={"required": ["country"]}),)},
            "'country' is a required",
        ),
        ({"tools": (Tool(name="x", parameters={"maximum": float("nan")}),)}, "JSON"),
        ({"calls": (OSLO, OSLO), "track": "structured"}, "holds one call"),
        ({"prompt": (Message(role="user", content="\ud800"),)}, "surrogates"),
        ({"accepted": ({}, {})}, "2 accepted entries for 1 calls"),
        ({"accepted": ({"city": [7]},)}, "accepted value 7 of city"),
        ({"accepted": ({"city": [None]},)}, "accepted value None of city"),
        ({"accepted": ({"place": ["Oslo"]},)}, "accepted value 'Oslo' of place"),
    ],
)
def test_gold_that_cannot_be_reached_is_refused(row, tmp_path, changes, problem):
    bad = row.model_copy(update={"id": "bad", **changes})

    with pytest.raises(DatasetError, match="1 of 2 rows") as caught:
        write_test_set([row, bad], tmp_path / "gold.jsonl")

    assert "bad: " in str(caught.value)
    assert problem in str(caught.value)
    assert caught.value.context["rows"] == ("bad",)
    assert list(tmp_path.iterdir()) == []


def test_a_set_written_by_hand_needs_no_manifest_but_must_pass(row, tmp_path):
    path = tmp_path / "hand.jsonl"
    path.write_text(row.model_dump_json() + "\n")
    assert read_test_set(path) == [row]

    path.write_text(row.model_dump_json().replace("Oslo", "Bergen", 1) + "\n")
    with pytest.raises(DatasetError, match="do not pass their own scorer"):
        read_test_set(path)


def test_an_altered_set_is_refused(row, tmp_path):
    path = tmp_path / "gold.jsonl"
    write_test_set([row], path)
    path.write_text(path.read_text() * 2)

    with pytest.raises(DatasetError, match="was altered"):
        read_test_set(path)


@pytest.mark.parametrize("line", ["", "{", "[]", "null", '{"id": "x"}'])
def test_a_line_that_is_no_example_is_named(row, tmp_path, line):
    path = tmp_path / "hand.jsonl"
    path.write_text(f"{row.model_dump_json()}\n{line}\n")

    with pytest.raises(DatasetError, match="line 2 is not an example"):
        read_test_set(path)


def test_empty_missing_and_repeating_sets_are_refused(row, tmp_path):
    with pytest.raises(DatasetError, match="no rows"):
        write_test_set([], tmp_path / "gold.jsonl")
    with pytest.raises(DatasetError, match="share an id"):
        write_test_set([row, row], tmp_path / "gold.jsonl")
    with pytest.raises(DatasetError, match="cannot be read"):
        read_test_set(tmp_path / "gold.jsonl")


def test_a_set_that_cannot_be_written_leaves_the_old_one(row, make_call, tmp_path):
    path = tmp_path / "gold.jsonl"
    write_test_set([row], path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(DatasetError, match="Could not write"):
            write_test_set([examine(make_call(n)) for n in range(20)], path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert read_test_set(path) == [row]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gold.jsonl", "gold.jsonl.manifest.json"]


def berkeley_examples(folder: Path) -> Iterator[Example]:
    """Yield the single-call Python rows of the Berkeley leaderboard."""
    lines = (folder / "possible_answer/BFCL_v4_simple_python.json").read_bytes().splitlines()
    answers = {row["id"]: row["ground_truth"][0] for row in map(json.loads, lines)}
    kinds = {"dict": "object", "float": "number", "tuple": "array"}

    def as_schema(value):
        if not isinstance(value, dict):
            return value
        schema = {key: as_schema(inner) for key, inner in value.items() if inner != "any"}
        if isinstance(schema.get("type"), str):
            schema["type"] = kinds.get(schema["type"], schema["type"])
        return schema

    def as_value(accepted):
        first = next(value for value in accepted if value != "")
        if not isinstance(first, dict):
            return first
        return {key: as_value(values) for key, values in first.items() if "" not in values}

    for row in map(json.loads, (folder / "BFCL_v4_simple_python.json").read_bytes().splitlines()):
        ((name, given),) = answers[row["id"]].items()
        arguments = {
            k: as_value(values) for k, values in given.items() if values and "" not in values
        }
        use = ToolUse(name=name, arguments=arguments)
        yield Example(
            id=row["id"],
            track="toolcall",
            prompt=tuple(Message.model_validate(message) for message in row["question"][0]),
            tools=tuple(
                Tool(name=f["name"], parameters=as_schema(f["parameters"])) for f in row["function"]
            ),
            completion=render_completion("toolcall", (use,)),
            calls=(use,),
            conversation_id=row["id"],
        )


@pytest.mark.skipif("SLM_SHARED_DATA" not in os.environ, reason="SLM_SHARED_DATA is not set")
def test_real_questions_round_trip(tmp_path):
    rows = list(berkeley_examples(Path(os.environ["SLM_SHARED_DATA"]) / "eval" / "bfcl"))
    good = [row for row in rows if gold_problem(row) is None]

    gold = write_test_set(good, tmp_path / "bfcl.jsonl")

    assert gold_id(read_test_set(gold.path)) == gold.id
    # Some answers of that set break the tool's own schema; the rest must pass.
    assert len(rows) * 0.97 < len(good) < len(rows)
    with pytest.raises(DatasetError, match="do not pass their own scorer"):
        write_test_set(rows, tmp_path / "all.jsonl")
