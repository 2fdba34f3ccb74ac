"""Checks of tools and of the calls made to them, against JSON Schema Draft 2020-12.

A ``$ref`` to another document is never fetched: a captured tool must not make us call a URL.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from slm_core.records import DropReason, Tool, ToolUse, Track, canonical_json

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator

_LONGEST_DETAIL = 300


class Objection(NamedTuple):
    """Why something cannot become an example."""

    reason: DropReason
    detail: str


def object_to_tools(tools: Sequence[Tool]) -> Objection | None:
    """Object to tools that share a name and to parameters that are not a JSON Schema."""
    names = [tool.name for tool in tools]
    for tool in tools:
        if names.count(tool.name) > 1:
            return Objection(DropReason.TOOL_SCHEMA, f"two tools are named {tool.name!r}")
        try:
            problem = _compile(canonical_json(tool.parameters)).problem
        except RecursionError:
            problem = "nested too deeply"
        if problem is not None:
            return Objection(DropReason.TOOL_SCHEMA, f"{tool.name}: {problem}")
    return None


def object_to_calls(
    track: Track, tools: Sequence[Tool], calls: Sequence[ToolUse]
) -> Objection | None:
    """Object to calls of tools not offered and to arguments that break the tool's schema.

    ``tools`` have passed ``object_to_tools``. A ``structured`` row without any tools keeps its
    schema in the prompt's text, where it cannot be checked.
    """
    if track == "structured" and not tools:
        return None
    parameters = {tool.name: tool.parameters for tool in tools}
    for call in calls:
        if call.name not in parameters:
            return Objection(DropReason.UNKNOWN_TOOL, repr(call.name))
        objection = _object_to_arguments(parameters[call.name], call.arguments)
        if objection is not None:
            return Objection(objection.reason, f"{call.name}: {objection.detail}")
    return None


class _Compiled(NamedTuple):
    validator: Draft202012Validator
    problem: str | None


@lru_cache(maxsize=4096)
def _compile(schema: str) -> _Compiled:
    """Return the validator of a schema given as JSON, and what is wrong with the schema."""
    from jsonschema import Draft202012Validator, SchemaError
    from referencing import Registry

    parameters = json.loads(schema)
    validator = Draft202012Validator(parameters, registry=Registry())
    try:
        Draft202012Validator.check_schema(parameters)
    except SchemaError as error:
        return _Compiled(validator, _short(f"{error.json_path}: {error.message}"))
    return _Compiled(validator, None)


def _object_to_arguments(parameters: dict[str, Any], arguments: dict[str, Any]) -> Objection | None:
    from referencing.exceptions import Unresolvable

    validator = _compile(canonical_json(parameters)).validator
    try:
        errors = sorted(validator.iter_errors(arguments), key=lambda e: (e.json_path, e.message))
    except Unresolvable as error:
        return Objection(DropReason.TOOL_SCHEMA, _short(f"$ref does not resolve: {error}"))
    except RecursionError:
        return Objection(DropReason.TOOL_SCHEMA, "the schema refers to itself without end")
    if errors:
        detail = _short(f"{errors[0].json_path}: {errors[0].message}")
        return Objection(DropReason.ARGUMENTS, detail)
    return None


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_DETAIL else f"{text[:_LONGEST_DETAIL]}..."
