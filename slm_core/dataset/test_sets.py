"""Test sets that come from outside: JSON Lines of examples whose answers are certain.

Each row must pass its own scorer, when written and when read. A set whose gold cannot be
reached is refused with the list of its bad rows, for it would measure the wrong thing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from slm_core.dataset.files import replace_file, to_jsonl
from slm_core.dataset.schemas import object_to_calls, object_to_tools
from slm_core.errors import DatasetError
from slm_core.prompting.formats import render_completion
from slm_core.prompting.parse import parse_output
from slm_core.records import Example, Record, ToolUse, canonical_json, content_id, sha256_hex

_SHOWN = 10


class GoldSet(Record):
    """A test set on disk."""

    id: str
    """Hash of the rows."""
    path: str
    rows: int
    sha256: str
    """Of the file."""


def gold_id(examples: Sequence[Example]) -> str:
    """Return the content id of a test set; the order of its rows counts."""
    return content_id("gold", [example.model_dump(mode="json") for example in examples])


def manifest_path(path: Path | str) -> Path:
    """Return where the manifest of the test set at ``path`` stands, beside it."""
    return Path(f"{path}.manifest.json")


def write_test_set(examples: Sequence[Example], path: Path | str) -> GoldSet:
    """Write ``examples`` as JSON Lines to ``path``, with a manifest beside it.

    Raises:
        DatasetError: there are no rows, rows share an id, or gold does not pass its own
            scorer; nothing is written.
    """
    _require_gold(examples, str(path))
    text = to_jsonl(example.model_dump(mode="json") for example in examples)
    gold = GoldSet(
        id=gold_id(examples), path=str(path), rows=len(examples), sha256=sha256_hex(text)
    )
    replace_file(Path(path), text)
    replace_file(manifest_path(path), gold.model_dump_json(indent=2) + "\n")
    return gold


def read_test_set(path: Path | str) -> list[Example]:
    """Return the examples of the test set at ``path``; ``gold_id`` gives its id.

    A file written by hand needs no manifest; one that has a manifest must match it.

    Raises:
        DatasetError: the file is missing, altered, not made of examples, or its gold does
            not pass its own scorer.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DatasetError(f"The test set {path} cannot be read: {error}.") from error
    beside = manifest_path(path)
    if beside.exists():
        gold = GoldSet.model_validate_json(beside.read_bytes())
        if sha256_hex(data) != gold.sha256:
            raise DatasetError(
                f"{path} was altered: its SHA-256 is not the one in {beside.name}. "
                "Restore the file, or write the set again to freeze it anew."
            )
    examples: list[Example] = []
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            examples.append(Example.model_validate(json.loads(line)))
        except (ValueError, ValidationError) as error:
            raise DatasetError(f"{path} line {number} is not an example: {error}") from error
    _require_gold(examples, str(path))
    return examples


def gold_problem(example: Example) -> str | None:
    """Return why the gold of ``example`` cannot be reached, or None when it can."""
    try:
        # Python mode: the JSON mode of pydantic would write NaN as null.
        canonical_json(example.model_dump()).encode("utf-8")
        text = render_completion(example.track, example.calls)
    except (ValueError, RecursionError) as error:
        return str(error)
    for answer in (text, example.completion):
        parsed = parse_output(answer, example.track)
        if not parsed.parsed:
            return f"the completion is not in the track's exact format: {parsed.failure}"
        if canonical_json(_plain(parsed.calls)) != canonical_json(_plain(example.calls)):
            return "the completion does not encode the calls"
    objection = object_to_tools(example.tools) or object_to_calls(
        example.track, example.tools, example.calls
    )
    return objection.detail if objection else _accepted_problem(example)


def _accepted_problem(example: Example) -> str | None:
    """Return which accepted value the tool's schema would refuse."""
    if not example.accepted:
        return None
    if len(example.accepted) != len(example.calls):
        return f"{len(example.accepted)} accepted entries for {len(example.calls)} calls"
    for call, accepted in zip(example.calls, example.accepted, strict=True):
        for name, values in accepted.items():
            for value in values:
                arguments = {k: v for k, v in call.arguments.items() if k != name}
                if value is not None:
                    arguments[name] = value
                variant = ToolUse(name=call.name, arguments=arguments)
                objection = object_to_calls(example.track, example.tools, [variant])
                if objection:
                    return f"accepted value {value!r} of {name}: {objection.detail}"
    return None


def _require_gold(examples: Sequence[Example], where: str) -> None:
    if not examples:
        raise DatasetError(f"The test set {where} has no rows.")
    ids = [example.id for example in examples]
    if len(set(ids)) < len(ids):
        raise DatasetError(
            f"{len(ids) - len(set(ids))} row(s) of the test set {where} share an id with "
            "another row; give every row its own."
        )
    problems = [(e.id, problem) for e in examples if (problem := gold_problem(e))]
    if problems:
        listed = "; ".join(f"{name}: {problem}" for name, problem in problems[:_SHOWN])
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise DatasetError(
            f"{len(problems)} of {len(examples)} rows of the test set {where} do not pass their "
            f"own scorer: {listed}{more}. Correct or remove them.",
            rows=tuple(name for name, _ in problems),
        )


def _plain(calls: Sequence[ToolUse]) -> list[dict[str, object]]:
    return [call.model_dump(mode="json") for call in calls]
