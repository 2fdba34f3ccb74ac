"""Compares calls: typed equality of values, counts per call, and the best one-to-one pairing.

``True`` is not 1, and 1 equals 1.0 only where the schema says ``number``. Strings are equal
letter for letter, lists in order, objects key by key. Predicted and gold calls of equal names
are paired so that the number of right values is as large as any pairing can make it; first
come, first served would reject right answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from slm_core.evaluation.tool_schema import SchemaNode, parameters_of
from slm_core.records import Tool, ToolUse


class GoldCall(NamedTuple):
    """A call that is wanted, and the other values that its parameters may have."""

    call: ToolUse
    accepted: Mapping[str, Sequence[Any]]


class CallScore(NamedTuple):
    """Arguments of one gold call against those of the predicted call paired with it."""

    true_positives: int
    gold: int
    exact: bool


def score_calls(
    gold: Sequence[GoldCall], predicted: Sequence[ToolUse], tools: Sequence[Tool]
) -> list[CallScore]:
    """Return the score of each gold call under the best pairing; unpaired ones are missed."""
    paired: dict[int, CallScore] = {}
    for name in dict.fromkeys(g.call.name for g in gold):
        mine = [i for i, g in enumerate(gold) if g.call.name == name]
        theirs = [call for call in predicted if call.name == name]
        node = parameters_of(next((t for t in tools if t.name == name), None))
        table = [[score_call(gold[i], call.arguments, node) for call in theirs] for i in mine]
        for row, column in _best_pairs(table):
            paired[mine[row]] = table[row][column]
    return [paired[i] if i in paired else _missed(g) for i, g in enumerate(gold)]


def score_call(gold: GoldCall, predicted: Mapping[str, Any], node: SchemaNode) -> CallScore:
    """Count the top-level arguments that are right, and those that were wanted.

    A parameter whose accepted values hold None, or that only the accepted values name, may be
    left out: it then counts on neither side, and given wrongly it is a false positive only.
    """
    right = wanted = 0
    wants = gold.call.arguments
    for name in wants.keys() | gold.accepted.keys():
        others = gold.accepted.get(name, ())
        values = [value for value in others if value is not None]
        if name in wants:
            values.append(wants[name])
        if name in predicted and any(
            same_value(value, predicted[name], node.property(name)) for value in values
        ):
            right += 1
            wanted += 1
        elif name in wants and None not in others:
            wanted += 1
    return CallScore(right, wanted, exact=right == wanted == len(predicted))


def same_value(gold: Any, predicted: Any, node: SchemaNode) -> bool:
    """Return whether two JSON values are the same, types included."""
    if type(gold) is not type(predicted):
        return _are_numbers(gold, predicted) and gold == predicted and node.says_number()
    if isinstance(gold, dict):
        return gold.keys() == predicted.keys() and all(
            same_value(value, predicted[key], node.property(key)) for key, value in gold.items()
        )
    if isinstance(gold, list):
        items = node.items()
        return len(gold) == len(predicted) and all(
            same_value(a, b, items) for a, b in zip(gold, predicted, strict=True)
        )
    return bool(gold == predicted)


def best_assignment(weights: Sequence[Sequence[int]]) -> list[int]:
    """Return for each row a column of its own, so that the sum of weights is greatest.

    Needs at least as many columns as rows. Rows enter one by one, each along the path of
    re-assignments that gains most (successive longest augmenting paths, as in the Hungarian
    method); so the result is exact for any size.
    """
    column_of: list[int] = []
    owner: dict[int, int] = {}
    for root in range(len(weights)):
        column_of.append(-1)
        gain = {root: 0}
        came_from: dict[int, int] = {}
        waiting = [root]
        best, last_row, last_column = -1, root, -1
        while waiting:
            row = waiting.pop()
            for column, weight in enumerate(weights[row]):
                total = gain[row] + weight
                holder = owner.get(column)
                if holder is None:
                    if last_column < 0 or total > best:
                        best, last_row, last_column = total, row, column
                elif holder != row:
                    left = total - weights[holder][column]
                    if holder not in gain or left > gain[holder]:
                        gain[holder] = left
                        came_from[holder] = row
                        waiting.append(holder)
        row, column = last_row, last_column
        while True:
            freed = column_of[row]
            column_of[row], owner[column] = column, row
            if row == root:
                break
            row, column = came_from[row], freed
    return column_of


def _missed(gold: GoldCall) -> CallScore:
    return score_call(gold, {}, SchemaNode({}, {}))._replace(exact=False)


def _best_pairs(table: list[list[CallScore]]) -> list[tuple[int, int]]:
    """Return (row, column) pairs with the most right values; among those, most exact calls."""
    if not table or not table[0]:
        return []
    one_more = min(len(table), len(table[0])) + 1
    weights = [[s.true_positives * one_more + s.exact for s in row] for row in table]
    if len(table) <= len(table[0]):
        return list(enumerate(best_assignment(weights)))
    turned = [list(column) for column in zip(*weights, strict=True)]
    return [(row, column) for column, row in enumerate(best_assignment(turned))]


def _are_numbers(a: Any, b: Any) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in (a, b))
