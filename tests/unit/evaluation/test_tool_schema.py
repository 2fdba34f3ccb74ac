"""What scoring asks of a tool's JSON Schema."""

from __future__ import annotations

import pytest

from slm_core.evaluation.tool_schema import SchemaNode
from slm_core.records import FailureClass

TYPE, ENUM = FailureClass.WRONG_TYPE, FailureClass.NOT_IN_ENUM


@pytest.mark.parametrize(
    ("schema", "value", "fault"),
    [
        ({}, object(), None),
        (True, 5, None),
        ({"type": "integer"}, 5, None),
        ({"type": "integer"}, 5.0, TYPE),
        ({"type": "integer"}, True, TYPE),
        ({"type": "integer"}, "5", TYPE),
        ({"type": "number"}, 5, None),
        ({"type": "number"}, 5.5, None),
        ({"type": "number"}, False, TYPE),
        ({"type": "boolean"}, True, None),
        ({"type": "boolean"}, 1, TYPE),
        ({"type": "string"}, None, TYPE),
        ({"type": ["string", "null"]}, None, None),
        ({"type": "array", "items": {"type": "string"}}, ["a", "b"], None),
        ({"type": "array", "items": {"type": "string"}}, ["a", 1], TYPE),
        ({"type": "object", "properties": {"a": {"enum": [1]}}}, {"a": 2, "b": 3}, ENUM),
        ({"enum": ["a", "b"]}, "b", None),
        ({"enum": ["a", "b"]}, "c", ENUM),
        ({"enum": [1]}, True, ENUM),
        ({"const": "x"}, "y", ENUM),
        ({"anyOf": [{"type": "string", "enum": ["a"]}, {"type": "null"}]}, None, None),
        ({"anyOf": [{"type": "string", "enum": ["a"]}, {"type": "null"}]}, "b", ENUM),
        ({"oneOf": [{"type": "string"}, {"type": "null"}]}, 1, TYPE),
        ({"allOf": [{"type": "string"}, {"enum": ["a"]}]}, "b", ENUM),
        ({"$ref": "#/$defs/c", "$defs": {"c": {"enum": ["a"]}}}, "b", ENUM),
        ({"$ref": "#/$defs/none"}, "b", None),
        ({"$ref": "http://elsewhere"}, "b", None),
        ({"$ref": "#"}, "b", None),
        ({"type": "unheard-of"}, "b", None),
    ],
)
def test_a_value_is_checked_against_type_and_enum(schema, value, fault):
    assert SchemaNode(schema, schema).fault(value) == fault


def test_names_are_known_only_if_listed_or_open():
    def knows(schema: dict) -> bool:
        return SchemaNode(schema, schema).knows("b")

    assert not knows({"properties": {"a": {}}})
    assert knows({"properties": {"a": {}, "b": {}}})
    assert knows({"properties": {"a": {}}, "additionalProperties": True})
    assert not knows({"properties": {"a": {}}, "additionalProperties": False})
    assert knows({"type": "object"})
    assert not knows({"properties": {}})


def test_properties_are_found_through_references_and_branches():
    schema = {
        "$defs": {"point": {"properties": {"x": {"type": "number"}}}},
        "properties": {"at": {"anyOf": [{"$ref": "#/$defs/point"}, {"type": "null"}]}},
    }
    assert SchemaNode(schema, schema).property("at").property("x").says_number()
    assert not SchemaNode(schema, schema).property("nothing").says_number()
