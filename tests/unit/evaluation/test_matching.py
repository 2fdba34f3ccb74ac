"""Typed equality, counts per call, and the best pairing of calls."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_core.evaluation.matching import (
    CallScore,
    GoldCall,
    best_assignment,
    same_value,
    score_call,
    score_calls,
)
from slm_core.evaluation.tool_schema import SchemaNode
from slm_core.records import Tool, ToolUse


def node(schema: dict[str, Any]) -> SchemaNode:
    return SchemaNode(schema, schema)


NUMBER = node({"type": "number"})
INTEGER = node({"type": "integer"})
NONE = node({})


@pytest.mark.parametrize(
    ("a", "b", "schema", "same"),
    [
        (1, 1, NONE, True),
        (1, 1.0, NUMBER, True),
        (1.0, 1, NUMBER, True),
        (1, 1.0, INTEGER, False),
        (1, 1.0, NONE, False),
        (1, True, NUMBER, False),
        (0, False, NONE, False),
        (True, True, NONE, True),
        (None, False, NONE, False),
        (None, None, NONE, True),
        ("5", 5, NONE, False),
        ("Paris", "paris", NONE, False),
        ("Paris", "Paris ", NONE, False),
        ([1, 2], [1, 2], NONE, True),
        ([1, 2], [2, 1], NONE, False),
        ([1], [1, 1], NONE, False),
        ([1], [1.0], node({"type": "array", "items": {"type": "number"}}), True),
        ([1], [1.0], node({"type": "array", "items": {"type": "integer"}}), False),
        ([1], [True], node({"type": "array", "items": {"type": "number"}}), False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, NONE, True),
        ({"a": 1}, {"a": 1, "b": 2}, NONE, False),
        ({"a": 1}, {"a": 1.0}, node({"properties": {"a": {"type": "number"}}}), True),
        ({"a": 1}, {"a": True}, NONE, False),
        (10**400, 1.0, NUMBER, False),
        (2, 2.0, node({"type": ["number", "null"]}), True),
        (2, 2.0, node({"anyOf": [{"type": "null"}, {"type": "number"}]}), True),
        (2, 2.0, node({"$ref": "#/$defs/n", "$defs": {"n": {"type": "number"}}}), True),
    ],
)
def test_values_are_equal_with_their_types(a, b, schema, same):
    assert same_value(a, b, schema) is same
    assert same_value(b, a, schema) is same


def call(name: str = "f", **arguments: Any) -> ToolUse:
    return ToolUse(name=name, arguments=arguments)


def gold(wanted: ToolUse, **accepted: list[Any]) -> GoldCall:
    return GoldCall(wanted, accepted)


@pytest.mark.parametrize(
    ("wanted", "predicted", "score"),
    [
        (gold(call(a=1, b=2)), {"a": 1, "b": 2}, CallScore(2, 2, True)),
        (gold(call(a=1, b=2)), {"a": 1}, CallScore(1, 2, False)),
        (gold(call(a=1, b=2)), {"a": 1, "b": 3}, CallScore(1, 2, False)),
        (gold(call(a=1)), {"a": 1, "b": 2}, CallScore(1, 1, False)),
        (gold(call()), {}, CallScore(0, 0, True)),
        (gold(call()), {"a": 1}, CallScore(0, 0, False)),
        # Other values are right too; the gold value always is.
        (gold(call(a="NY"), a=["New York"]), {"a": "New York"}, CallScore(1, 1, True)),
        (gold(call(a="NY"), a=["New York"]), {"a": "NY"}, CallScore(1, 1, True)),
        (gold(call(a="NY"), a=["New York"]), {"a": "York"}, CallScore(0, 1, False)),
        # None: may be left out, and then counts on neither side.
        (gold(call(a=1, u="m"), u=["m", None]), {"a": 1}, CallScore(1, 1, True)),
        (gold(call(a=1, u="m"), u=["m", None]), {"a": 1, "u": "m"}, CallScore(2, 2, True)),
        (gold(call(a=1, u="m"), u=["m", None]), {"a": 1, "u": "x"}, CallScore(1, 1, False)),
        (gold(call(a=1, u="m"), u=["m", None]), {"a": 1, "u": None}, CallScore(1, 1, False)),
        (gold(call(a=None), a=[None]), {"a": None}, CallScore(1, 1, True)),
        # Only the accepted values name it: it may be given or left out.
        (gold(call(a=1), u=["m"]), {"a": 1}, CallScore(1, 1, True)),
        (gold(call(a=1), u=["m"]), {"a": 1, "u": "m"}, CallScore(2, 2, True)),
        (gold(call(a=1), u=["m"]), {"a": 1, "u": "x"}, CallScore(1, 1, False)),
    ],
)
def test_arguments_of_a_call_are_counted(wanted, predicted, score):
    assert score_call(wanted, predicted, NONE) == score


def test_pairing_takes_the_right_answer_that_first_come_first_served_rejects():
    wanted = [gold(call(a=1), a=[1, 2]), gold(call(a=1))]
    scores = score_calls(wanted, [call(a=1), call(a=2)], [])
    assert scores == [CallScore(1, 1, True), CallScore(1, 1, True)]


def test_among_equal_counts_the_exact_pairing_wins():
    wanted = [gold(call(a=1, b=2)), gold(call(a=1), b=[2, None])]
    scores = score_calls(wanted, [call(a=1), call(a=1, b=2)], [])
    assert scores == [CallScore(2, 2, True), CallScore(1, 1, True)]


def test_a_repeated_call_satisfies_one_gold_call_only():
    scores = score_calls([gold(call(a=1)), gold(call(a=2))], [call(a=1), call(a=1)], [])
    assert scores == [CallScore(1, 1, True), CallScore(0, 1, False)]


def test_calls_pair_by_equal_names_only():
    scores = score_calls([gold(call("f", a=1))], [call("g", a=1), call("f.x", a=1)], [])
    assert scores == [CallScore(0, 1, False)]


def test_an_unpaired_gold_call_misses_all_that_it_demands():
    wanted = gold(call(a=1, b=2, c=3), c=[3, None])
    assert score_calls([wanted], [], []) == [CallScore(0, 2, False)]
    assert score_calls([gold(call())], [], []) == [CallScore(0, 0, False)]


def test_the_schema_of_the_called_tool_decides():
    tool = Tool(name="f", parameters={"properties": {"a": {"type": "number"}}})
    assert score_calls([gold(call(a=1))], [call(a=1.0)], [tool])[0].exact
    assert not score_calls([gold(call(a=1))], [call(a=1.0)], [])[0].exact


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_assignment_is_as_good_as_trying_all(data):
    rows = data.draw(st.integers(0, 4))
    columns = data.draw(st.integers(rows, 5))
    row = st.lists(st.integers(0, 6), min_size=columns, max_size=columns)
    weights = data.draw(st.lists(row, min_size=rows, max_size=rows))
    found = best_assignment(weights)
    assert len(set(found)) == rows
    best = max(
        sum(weights[i][c] for i, c in enumerate(order))
        for order in itertools.permutations(range(columns), rows)
    )
    assert sum(weights[i][c] for i, c in enumerate(found)) == best


def test_many_calls_of_one_name_are_paired_too():
    wanted = [gold(call(a=i, b=0)) for i in range(40)]
    predicted = [call(a=i, b=0) for i in reversed(range(60))]
    assert all(score.exact for score in score_calls(wanted, predicted, []))
    assert sum(s.exact for s in score_calls(wanted, predicted[-30:], [])) == 30
