"""Files of the Berkeley Function-Calling Leaderboard to test rows with accepted answers.

Its folder holds ``BFCL_*.json`` (JSON Lines: id, question, function) and, of the same names,
``possible_answer/`` (id, ground_truth: for each call every value that is right). A file
without answers is read when it is one of questions that no tool fits. A row that cannot be
scored here is left out with its reason, never dropped silently.

Patil et al., The Berkeley Function Calling Leaderboard, https://gorilla.cs.berkeley.edu/
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from slm_core.dataset.test_sets import gold_problem
from slm_core.errors import DatasetError
from slm_core.prompting.formats import NO_CALL_JSON, NO_CALL_TEXT, render_completion
from slm_core.records import TRACKS, Example, Message, Tool, ToolUse, Track

FORMAT_LINES: dict[Track, str] = {
    "structured": 'Answer with one JSON object, {"name": ..., "arguments": {...}}, and nothing '
    f"else. If no tool fits, answer {NO_CALL_JSON}.",
    "toolcall": 'Answer with one <tool_call name="TOOL">{arguments}</tool_call> for each call, '
    f"one a line, and nothing else. If no tool fits, answer: {NO_CALL_TEXT}",
}
"""What a question's system turn says about the answer; the leaderboard's rows say nothing."""

_JSON_TYPES = {"dict": "object", "float": "number", "tuple": "array"}
"""The leaderboard's type names that JSON Schema knows by another name."""
_CATEGORY = re.compile(r"BFCL_(?:v\d+_)?(.+)\.json")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]")
_MAY_BE_LEFT_OUT = ""


class Unusable(StrEnum):
    """Why a row of the leaderboard is no test row here."""

    UNREADABLE = "not in the leaderboard's format"
    SEVERAL_TURNS = "conversation of several turns"
    NO_ANSWER = "no right answer is given"
    SEVERAL_CALLS = "several calls, and the track structured holds one"
    GOLD = "its tools or its right answer break JSON Schema"


class LeftOut(NamedTuple):
    """One row on one track that was left out."""

    category: str
    row_id: str
    track: Track
    reason: Unusable
    detail: str


class BerkeleyRows(NamedTuple):
    """What a folder holds for us: used and left-out rows, once for each track."""

    examples: list[Example]
    left_out: list[LeftOut]


def load_berkeley(folder: Path | str, tracks: Sequence[Track] = TRACKS) -> BerkeleyRows:
    """Return every row of the files in ``folder``, on each of ``tracks``.

    The prompt begins with a system turn that says what an answer looks like; tool names become
    names that hosted models accept. The leaderboard's category is the row's ``domain``.

    Raises:
        DatasetError: the folder is missing, holds no such files, or no row can be used.
    """
    folder = Path(folder)
    files = sorted(folder.glob("BFCL_*.json"))
    if not files:
        what = "holds no BFCL_*.json" if folder.is_dir() else "is no folder"
        raise DatasetError(
            f"{folder} {what}. Name the folder of the Berkeley Function-Calling Leaderboard's "
            "data (bfcl_eval/data in the repository ShishirPatil/gorilla): files BFCL_*.json and "
            "the folder possible_answer beside them."
        )
    found = BerkeleyRows([], [])
    for file in files:
        match = _CATEGORY.fullmatch(file.name)
        category = match.group(1) if match else file.stem
        answers = _answers(folder / "possible_answer" / file.name)
        for number, row in enumerate(_lines(file), start=1):
            for track in tracks:
                row_id = str(row.get("id", f"line {number}"))
                made = _example(row, row_id, track, category, answers)
                if isinstance(made, Example):
                    found.examples.append(made)
                else:
                    found.left_out.append(made)
    if not found.examples:
        raise DatasetError(
            f"None of the {len(found.left_out)} rows in {folder} can be used: "
            + "; ".join(f"{one.row_id}: {one.reason}" for one in found.left_out[:5])
        )
    return found


def _example(
    row: Mapping[str, Any],
    row_id: str,
    track: Track,
    category: str,
    answers: Mapping[str, Any],
) -> Example | LeftOut:
    def leave_out(reason: Unusable, detail: str = "") -> LeftOut:
        return LeftOut(category, row_id, track, reason, detail)

    try:
        turns = row["question"]
        if len(turns) > 1:
            return leave_out(Unusable.SEVERAL_TURNS, f"{len(turns)} turns")
        answer = answers.get(row_id, [] if "irrelevance" in category else None)
        if answer is None:
            return leave_out(Unusable.NO_ANSWER)
        if track == "structured" and len(answer) > 1:
            return leave_out(Unusable.SEVERAL_CALLS, f"{len(answer)} calls")
        pairs = [_gold(call) for call in answer]
        calls = tuple(call for call, _ in pairs)
        asked = [Message(role=turn["role"], content=turn["content"]) for turn in turns[0]]
        example = Example(
            id=f"{row_id}/{track}",
            track=track,
            prompt=(Message(role="system", content=FORMAT_LINES[track]), *asked),
            tools=tuple(_tool(tool) for tool in row["function"]),
            completion=render_completion(track, calls),
            calls=calls,
            accepted=tuple(accepted for _, accepted in pairs),
            conversation_id=row_id,
            domain=category,
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        return leave_out(Unusable.UNREADABLE, f"{type(error).__name__}: {error}")
    problem = gold_problem(example)
    return leave_out(Unusable.GOLD, problem) if problem else example


def _tool(tool: Mapping[str, Any]) -> Tool:
    return Tool(
        name=_name(tool["name"]),
        description=tool.get("description", ""),
        parameters=_json_schema(tool["parameters"]),
    )


def _name(name: str) -> str:
    """Return a name that hosted models accept: they refuse the dots of Python and Java."""
    return _NOT_IN_NAMES.sub("_", name)


def _json_schema(value: Any) -> Any:
    """Return a schema of the leaderboard in the words of JSON Schema."""
    if isinstance(value, list):
        return [_json_schema(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    schema = {key: _json_schema(inner) for key, inner in value.items()}
    if isinstance(kind := schema.get("type"), str):
        schema["type"] = _JSON_TYPES.get(kind, kind)
        if kind == "any":
            del schema["type"]
    return schema


def _gold(answer: Mapping[str, Mapping[str, list[Any]]]) -> tuple[ToolUse, dict[str, list[Any]]]:
    """Return the first right call, and for each parameter every right value."""
    ((name, parameters),) = answer.items()
    arguments: dict[str, Any] = {}
    accepted: dict[str, list[Any]] = {}
    for parameter, given in parameters.items():
        values = [_first_form(value) for value in given]
        if _MAY_BE_LEFT_OUT not in values:
            arguments[parameter] = values[0]
        accepted[parameter] = [None if value == _MAY_BE_LEFT_OUT else value for value in values]
    return ToolUse(name=_name(name), arguments=arguments), accepted


def _first_form(value: Any) -> Any:
    """Return the first right form of an object, whose members list their right values."""
    if not isinstance(value, dict):
        return value
    return {
        key: _first_form(inner[0]) if isinstance(inner, list) and inner else inner
        for key, inner in value.items()
        if inner != [_MAY_BE_LEFT_OUT]
    }


def _answers(file: Path) -> dict[str, Any]:
    """Return row id to right answers; empty for a file of questions that have none."""
    return {row["id"]: row["ground_truth"] for row in _lines(file)} if file.exists() else {}


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_text(file), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DatasetError(f"{file} line {number} is not JSON: {error}.") from error
        yield row if isinstance(row, dict) else {}


def _text(file: Path) -> Iterable[str]:
    try:
        return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeError) as error:
        raise DatasetError(f"{file} cannot be read: {error}.") from error
