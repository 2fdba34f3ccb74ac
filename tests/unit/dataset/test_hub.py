"""Public sets, in the format in which the hub holds them."""

from __future__ import annotations

import json
import sys

import pytest

from slm_core.dataset import DatasetSpec, build, drop_reason
from slm_core.dataset.examples import examine
from slm_core.dataset.hub import load_hermes, load_xlam, read_rows
from slm_core.dataset.hub_rows import UnreadableRow, hermes_calls, python_type_schema, xlam_calls
from slm_core.errors import DatasetError, MissingDependency
from slm_core.prompting.formats import NO_CALL_JSON
from slm_core.records import ToolUse

LIGHTS = {
    "type": "function",
    "function": {
        "name": "set_lights",
        "description": "Set the lights of a room.",
        "parameters": {
            "type": "object",
            "properties": {"room": {"type": "string"}, "on": {"type": "boolean"}},
            "required": ["room"],
        },
    },
}

NUMBER = {"type": "number"}
LIST_OF_EITHER = {"type": "array", "items": {"anyOf": [{"type": "string"}, NUMBER]}}


def turn(speaker, value):
    return {"from": speaker, "value": value}


def hermes_row(n=0, **changes):
    body = f"{{'name': 'set_lights', 'arguments': {{'room': 'room {n}', 'on': True}}}}"
    row = {
        "id": f"row-{n}",
        "conversations": [
            turn("system", "Call functions. <tools> [...] </tools> Use <tool_call> tags."),
            turn("human", f"Light in room {n}, now"),
            turn("gpt", f"<tool_call>\n{body}\n</tool_call>"),
        ],
        "tools": json.dumps([LIGHTS]),
        "category": "IoT",
    }
    return row | changes


def xlam_row(n=0, **changes):
    parameters = {
        "city": {"description": "Where.", "type": "str"},
        "days": {"description": "How long.", "type": "int", "default": 1},
        "tags": {"description": "Labels.", "type": "List[str], optional", "default": None},
    }
    row = {
        "id": n,
        "query": f"Forecast number {n} for Rio",
        "answers": json.dumps([{"name": "forecast", "arguments": {"city": "Rio", "days": n}}]),
        "tools": json.dumps([{"name": "forecast", "description": "F.", "parameters": parameters}]),
    }
    return row | changes


def test_a_hermes_row_is_a_call_without_the_hermes_instructions():
    (call,) = hermes_calls(hermes_row(3), "toolcall", "hermes")

    assert [m.role for m in call.messages] == ["user"]
    assert call.tool_calls == (
        ToolUse(name="set_lights", arguments={"room": "room 3", "on": True}),
    )
    assert call.tools[0].parameters == LIGHTS["function"]["parameters"]
    assert examine(call).domain == "IoT"
    assert drop_reason(call) is None


def test_each_calling_turn_of_a_conversation_is_a_call_with_its_history():
    call = '<tool_call>\n{"name": "set_lights", "arguments": {"room": "hall"}}\n</tool_call>'
    row = hermes_row(
        conversations=[
            turn("system", "You are kind."),
            turn("human", "Hall please"),
            turn("gpt", f"Sure.\n{call}\n{call}"),
            turn("tool", "<tool_response>\nok\n</tool_response>"),
            turn("gpt", "Done."),
            turn("human", "Again"),
            turn("gpt", call),
        ]
    )

    first, second = hermes_calls(row, "toolcall", "hermes")

    assert len(first.tool_calls) == 2
    assert [m.role for m in first.messages] == ["system", "user"]
    roles = ["system", "user", "assistant", "tool", "assistant", "user"]
    assert [m.role for m in second.messages] == roles
    assert (second.messages[2].content, len(second.messages[2].tool_calls)) == ("Sure.", 2)
    assert first.conversation_id == second.conversation_id
    assert first.id != second.id


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"tools": None}, "tools is not a list"),
        ({"tools": "[{"}, "tools is not JSON"),
        ({"tools": "[3]"}, "tools is not a list of objects"),
        ({"tools": '[{"function": {}}]'}, "a tool has no name"),
        ({"tools": '[{"name": "a", "parameters": [1]}]'}, "parameters are not an object"),
        ({"conversations": None}, "no assistant turn calls a tool"),
        ({"conversations": [turn("gpt", "Hello.")]}, "no assistant turn calls a tool"),
        ({"conversations": [turn("robot", "Hello.")]}, "unknown speaker"),
        ({"conversations": [turn("gpt", "<tool_call>f(1)</tool_call>")]}, "neither JSON nor"),
        ({"conversations": [turn("gpt", "<tool_call>[1]</tool_call>")]}, "a call has no name"),
        (
            {
                "conversations": [
                    turn("gpt", "<tool_call>{'name': 'a', 'arguments': 'b'}</tool_call>")
                ]
            },
            "arguments are not an object",
        ),
    ],
)
def test_a_hermes_row_that_is_no_call_says_why(changes, problem):
    with pytest.raises(UnreadableRow, match=problem):
        hermes_calls(hermes_row(**changes), "toolcall", "hermes")


def test_an_xlam_row_gets_its_python_types_as_json_schema():
    (call,) = xlam_calls(xlam_row(2), "structured", "xlam")

    assert call.tools[0].parameters == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Where."},
            "days": {"type": "integer", "description": "How long.", "default": 1},
            "tags": {
                "type": "array",
                "items": {"type": "string"},
                "description": "Labels.",
                "default": None,
            },
        },
        "required": ["city"],
    }
    assert examine(call).completion == (
        '{"name": "forecast", "arguments": {"city": "Rio", "days": 2}}'
    )


def test_an_xlam_row_without_answers_is_a_refusal():
    (call,) = xlam_calls(xlam_row(answers="[]"), "structured", "xlam")

    assert examine(call).completion == NO_CALL_JSON


@pytest.mark.parametrize(
    ("text", "schema"),
    [
        ("str", {"type": "string"}),
        (" Dict[str, int]", {"type": "object"}),
        ("List[List[float]]", {"type": "array", "items": {"type": "array", "items": NUMBER}}),
        ("Optional[bool]", {"type": "boolean"}),
        ("Tuple[int, int]", {"type": "array"}),
        ("Union[float, List[Union[str, float]]]", {"anyOf": [NUMBER, LIST_OF_EITHER]}),
        ("Any", {}),
    ],
)
def test_python_types_become_schemas(text, schema):
    assert python_type_schema(text) == schema


@pytest.mark.parametrize("text", ["", "Callable[[float], float]", "List[int", "Foo", "Union[]"])
def test_types_that_json_does_not_have_are_refused(text):
    with pytest.raises(UnreadableRow, match="unknown parameter type"):
        python_type_schema(text)


@pytest.mark.parametrize(
    "changes", [{"query": None}, {"query": " "}, {"tools": "x"}, {"answers": '{"a": 1}'}]
)
def test_an_xlam_row_that_is_no_call_is_counted(changes):
    found = read_rows([xlam_row(0), xlam_row(1, **changes)], xlam_calls, "toolcall", "xlam")

    assert len(found.calls) == 1
    assert found.rejected[0].source == "xlam row 1"
    assert sum(found.reasons.values()) == 1


def test_rows_without_an_id_get_one_from_their_content():
    rows = [xlam_row(n, id=None) for n in (1, 2, 1)]
    calls = read_rows(rows, xlam_calls, "toolcall", "xlam").calls

    assert calls[0].id == calls[2].id != calls[1].id


def test_files_in_the_hubs_format_are_loaded_and_built(tmp_path):
    pytest.importorskip("datasets")
    hermes = tmp_path / "func-calling-singleturn.json"
    hermes.write_text(json.dumps([*(hermes_row(n) for n in range(60)), hermes_row(99, tools="[")]))
    xlam = tmp_path / "xlam.json"
    xlam.write_text(json.dumps([xlam_row(n) for n in range(60)]))

    one = load_hermes("toolcall", data_files=hermes, cache_dir=tmp_path / "cache")
    other = load_xlam("structured", data_files=xlam, cache_dir=tmp_path / "cache")
    dataset = build([*one.calls, *other.calls], DatasetSpec(), tmp_path / "datasets")

    assert one.reasons == {"tools is not JSON": 1}
    assert dataset.rows == {"train": 96, "val": 12, "test": 12}
    assert dataset.drops == {}


def test_a_file_that_is_missing_or_no_json_is_named(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "broken.json").write_text("not json at all")

    for name in ("missing.json", "broken.json"):
        with pytest.raises(DatasetError, match=f"{name} could not be loaded"):
            load_xlam("toolcall", data_files=tmp_path / name, cache_dir=tmp_path / "cache")


def test_a_missing_package_names_the_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)

    with pytest.raises(MissingDependency, match=r"pip install .*\[hub\]"):
        load_hermes("toolcall")


@pytest.mark.hub
@pytest.mark.parametrize("track", ["toolcall", "structured"])
def test_the_hermes_set_itself_loads(track, tmp_path):
    found = load_hermes(track, cache_dir=tmp_path)

    assert len(found.calls) > 1500
    assert sum(drop_reason(call) is None for call in found.calls) > 1000
