"""Gold answers of the Berkeley leaderboard pass our scorer, where its files lie here."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from slm_core.dataset.berkeley import BerkeleyRows, load_berkeley
from slm_core.evaluation.scoring import check_gold, score_row
from slm_core.prompting.formats import render_completion
from slm_core.records import Example, FailureClass, ToolUse

pytestmark = pytest.mark.skipif(
    "SLM_SHARED_DATA" not in os.environ, reason="SLM_SHARED_DATA is not set"
)


@pytest.fixture(scope="module")
def berkeley() -> BerkeleyRows:
    return load_berkeley(Path(os.environ["SLM_SHARED_DATA"]) / "eval" / "bfcl")


def cases(rows: BerkeleyRows, category: str) -> list[Example]:
    return [row for row in rows.examples if (row.domain, row.track) == (category, "toolcall")]


def test_nearly_every_row_can_be_used_and_its_gold_passes(berkeley: BerkeleyRows) -> None:
    check_gold(berkeley.examples)
    used = Counter((row.domain, row.track) for row in berkeley.examples)
    # Of 400, 200, 200 and 240 rows: a few have gold that their own tool's schema refuses.
    assert used[("simple_python", "toolcall")] == used[("simple_python", "structured")] == 394
    assert used[("multiple", "toolcall")] == used[("multiple", "structured")] == 198
    assert used[("parallel", "toolcall")] == 199
    assert used[("irrelevance", "toolcall")] == used[("irrelevance", "structured")] == 240


def test_gold_of_parallel_calls_passes_in_any_order(berkeley: BerkeleyRows) -> None:
    for case in cases(berkeley, "parallel"):
        turned = render_completion("toolcall", case.calls[::-1])
        assert score_row(case, turned)[0].exact
        fewer, _ = score_row(case, render_completion("toolcall", case.calls[1:]))
        assert (fewer.exact, fewer.failure) == (False, FailureClass.CALL_COUNT)


def test_every_accepted_value_passes_alone(berkeley: BerkeleyRows) -> None:
    for case in cases(berkeley, "multiple"):
        (call,), (accepted,) = case.calls, case.accepted
        for parameter, values in accepted.items():
            for value in values:
                arguments = call.arguments | {parameter: value}
                if value is None:
                    arguments.pop(parameter)
                made = ToolUse(name=call.name, arguments=arguments)
                assert score_row(case, render_completion("toolcall", [made]))[0].exact


def test_a_call_where_none_is_wanted_is_an_over_call(berkeley: BerkeleyRows) -> None:
    for case in cases(berkeley, "irrelevance"):
        call = ToolUse(name=case.tools[0].name if case.tools else "f", arguments={})
        over, _ = score_row(case, render_completion("toolcall", [call]))
        assert (over.exact, over.failure) == (False, FailureClass.OVER_CALL)
