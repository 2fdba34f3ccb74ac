import json

import pytest
from pydantic import BaseModel

from slm_core.capture.wire import read_answer, read_content, read_messages, read_tools
from slm_core.records import Message, Tool, ToolUse

CALL = {"id": "1", "type": "function", "function": {"name": "book", "arguments": '{"n": 1}'}}


def test_openai_and_record_forms_of_a_turn_are_the_same() -> None:
    record = Message(
        role="assistant", content="so", tool_calls=(ToolUse(name="book", arguments={"n": 1}),)
    )
    wire = {"role": "assistant", "content": "so", "tool_calls": [CALL]}
    assert read_messages([record]) == read_messages([wire])
    assert Message.model_validate(read_messages([wire])[0]) == record


@pytest.mark.parametrize(
    ("given", "role", "content"),
    [
        ({"role": "developer", "content": "x"}, "system", "x"),
        ({"role": "tool", "tool_call_id": "1", "content": '{"ok": true}'}, "tool", '{"ok": true}'),
        ({"role": "function", "name": "f", "content": "r"}, "tool", "r"),
        ({"role": "assistant", "content": None}, "assistant", ""),
        ({"role": "user", "content": ""}, "user", ""),
        ({"role": "user", "content": [{"type": "text", "text": "a"}]}, "user", "a"),
        ({"role": "user", "content": ["a", {"type": "text", "text": "b"}]}, "user", "a\nb"),
    ],
)
def test_roles_and_contents(given: dict[str, object], role: str, content: str) -> None:
    assert read_messages([given]) == [{"role": role, "content": content}]


@pytest.mark.parametrize("turn", [{"role": "critic", "content": "no"}, "just text", 7])
def test_unknown_turns_are_kept_whole(turn: object) -> None:
    (message,) = read_messages([turn])
    assert (message["role"], json.loads(message["content"])) == ("user", turn)


def test_images_are_kept_as_json() -> None:
    parts = [
        {"type": "text", "text": "what is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
    ]
    assert json.loads(read_content(parts)) == parts


def test_objects_of_the_provider_are_read() -> None:
    class Part(BaseModel):
        type: str
        text: str

    assert read_content([Part(type="text", text="hello")]) == "hello"


@pytest.mark.parametrize("arguments", ["", "{}", {}])
def test_no_arguments(arguments: object) -> None:
    answer = read_answer(None, [{"name": "now", "arguments": arguments}])
    assert answer == (None, [{"name": "now", "arguments": {}}])


@pytest.mark.parametrize(
    "call",
    [
        {"name": "book", "arguments": '{"n": 1'},
        {"name": "book", "arguments": "[1]"},
        {"name": "book", "arguments": '{"n": NaN}'},
        {"name": "book", "arguments": '{"n": 1e999}'},
        {"name": "book", "arguments": {"n": [float("nan")]}},
        {"name": "book", "arguments": '{"n": ' + "[" * 100_000 + "]" * 100_000 + "}"},
        {"name": "", "arguments": "{}"},
        {"type": "custom", "custom": {"name": "sql", "input": "select 1"}},
        "book()",
    ],
)
def test_one_broken_call_turns_all_into_text(call: object) -> None:
    answer = read_answer("well,", [CALL, call])
    assert answer.tool_calls == []
    text, first, second = (answer.text or "").split("\n")
    assert (text, json.loads(first)) == ("well,", CALL)
    assert json.dumps(call) == second


def test_tool_forms() -> None:
    tool = Tool(name="f", description="d", parameters={"type": "object"})
    plain = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    wrapped = {"type": "function", "function": plain}
    assert read_tools([tool]) == read_tools([plain]) == read_tools([wrapped]) == [plain]


def test_a_tool_without_parameters() -> None:
    (tool,) = read_tools([{"name": "f", "description": None, "parameters": None}])
    assert Tool.model_validate(tool) == Tool(name="f")


@pytest.mark.parametrize("tool", [{"type": "web_search", "size": 3}, "search", {"function": {}}])
def test_tools_that_are_no_functions_are_kept_as_text(tool: object) -> None:
    (read,) = read_tools([tool])
    assert json.loads(Tool.model_validate(read).description) == tool


def test_nan_in_a_schema_is_refused() -> None:
    with pytest.raises(ValueError, match="'f' hold NaN"):
        read_tools([{"name": "f", "parameters": {"maximum": float("nan")}}])
