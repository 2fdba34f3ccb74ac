"""Gold answers of the Berkeley leaderboard pass our scorer, where its files lie here."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from slm_core.evaluation.scoring import check_gold, score_row
from slm_core.prompting.formats import NO_CALL_TEXT, render_completion
from slm_core.records import Example, FailureClass, Message, Tool, ToolUse, Track

pytestmark = pytest.mark.skipif(
    "SLM_SHARED_DATA" not in os.environ, reason="SLM_SHARED_DATA is not set"
)
JSON_TYPES = {"dict": "object", "float": "number", "tuple": "array"}


def rows(name: str) -> list[dict[str, Any]]:
    path = Path(os.environ["SLM_SHARED_DATA"]) / "eval" / "bfcl" / name
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def json_schema(value: Any) -> Any:
    """Return a leaderboard schema with the type names of JSON Schema."""
    if isinstance(value, list):
        return [json_schema(v) for v in value]
    if not isinstance(value, dict):
        return value
    schema = {key: json_schema(inner) for key, inner in value.items()}
    if isinstance(kind := schema.get("type"), str):
        schema["type"] = JSON_TYPES.get(kind, kind)
        if kind == "any":
            del schema["type"]
    return schema


def gold_call(answer: dict[str, dict[str, list[Any]]]) -> tuple[ToolUse, dict[str, list[Any]]]:
    """Return the first right answer, and all of them; ``""`` stands for "may be left out"."""
    ((name, parameters),) = answer.items()
    arguments: dict[str, Any] = {}
    accepted: dict[str, list[Any]] = {}
    for parameter, values in parameters.items():
        values = [_first(v) for v in values]
        if "" not in values:
            arguments[parameter] = values[0]
        accepted[parameter] = [None if v == "" else v for v in values]
    return ToolUse(name=name, arguments=arguments), accepted


def _first(value: Any) -> Any:
    """Return the first right form of an object, whose members list their right values."""
    if not isinstance(value, dict):
        return value
    return {
        key: _first(inner[0]) if isinstance(inner, list) and inner else inner
        for key, inner in value.items()
        if inner != [""]
    }


def examples(name: str, track: Track) -> list[Example]:
    answers = {row["id"]: row["ground_truth"] for row in rows(f"possible_answer/{name}")}
    found = []
    for row in rows(name):
        pairs = [gold_call(answer) for answer in answers[row["id"]]]
        calls = tuple(call for call, _ in pairs)
        found.append(
            Example(
                id=row["id"],
                track=track,
                prompt=tuple(Message(**turn) for turn in row["question"][0]),
                tools=tuple(
                    Tool(
                        name=tool["name"],
                        description=tool["description"],
                        parameters=json_schema(tool["parameters"]),
                    )
                    for tool in row["function"]
                ),
                completion=render_completion(track, calls),
                calls=calls,
                accepted=tuple(accepted for _, accepted in pairs),
                conversation_id=row["id"],
            )
        )
    return found


@pytest.mark.parametrize("track", ["structured", "toolcall"])
@pytest.mark.parametrize(
    ("name", "count"),
    [("BFCL_v4_simple_python.json", 400), ("BFCL_v4_multiple.json", 200)],
)
def test_gold_of_single_calls_passes(name, count, track):
    cases = examples(name, track)
    assert len(cases) == count
    check_gold(cases)


def test_gold_of_parallel_calls_passes_in_any_order():
    cases = examples("BFCL_v4_parallel.json", "toolcall")
    check_gold(cases)
    for case in cases:
        turned = render_completion("toolcall", case.calls[::-1])
        assert score_row(case, turned)[0].exact
        fewer, _ = score_row(case, render_completion("toolcall", case.calls[1:]))
        assert (fewer.exact, fewer.failure) == (False, FailureClass.CALL_COUNT)


def test_every_accepted_value_passes_alone():
    for case in examples("BFCL_v4_multiple.json", "toolcall"):
        (call,), (accepted,) = case.calls, case.accepted
        for parameter, values in accepted.items():
            for value in values:
                arguments = call.arguments | {parameter: value}
                if value is None:
                    arguments.pop(parameter)
                made = ToolUse(name=call.name, arguments=arguments)
                assert score_row(case, render_completion("toolcall", [made]))[0].exact


def test_rows_that_want_no_call():
    for row in rows("BFCL_v4_irrelevance.json"):
        tools = tuple(
            Tool(name=tool["name"], parameters=json_schema(tool["parameters"]))
            for tool in row["function"]
        )
        case = Example(
            id=row["id"],
            track="toolcall",
            prompt=(),
            tools=tools,
            completion=NO_CALL_TEXT,
            conversation_id=row["id"],
        )
        check_gold([case])
        call = ToolUse(name=tools[0].name if tools else "f", arguments={})
        over, _ = score_row(case, render_completion("toolcall", [call]))
        assert (over.exact, over.failure) == (False, FailureClass.OVER_CALL)
