"""The limits of a merge: what is fine, what is not, and that no NaN ever passes."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_core.training.merged_model import MergeCheck


def check(**changes: Any) -> MergeCheck:
    values: dict[str, Any] = {
        "prompts": 4,
        "rows": 20,
        "positions": 1000,
        "max_difference": 0.1,
        "mean_difference": 0.01,
        "spread": 4.0,
        "equal_tokens": 1.0,
        "perplexity_before": 1.02,
        "perplexity_after": 1.0201,
    }
    return MergeCheck(**(values | changes))


def test_rounding_is_fine() -> None:
    assert check().problems() == ()
    assert check(equal_tokens=0.99, mean_difference=0.04).problems() == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"equal_tokens": 0.97}, "97.0% of the most likely tokens"),
        ({"mean_difference": 0.37}, "9.2% of their spread"),
        ({"perplexity_after": 1.05}, r"perplexity on 20 rows changes by \+2.9%"),
        ({"perplexity_after": 0.99}, "changes by -2.9%"),
        ({"perplexity_after": None}, "is no number"),
        ({"mean_difference": math.nan}, "nan%"),
        ({"equal_tokens": math.nan}, "nan%"),
        ({"perplexity_after": math.nan}, "nan%"),
    ],
)
def test_what_is_beyond_a_limit_is_named_with_its_number(
    change: dict[str, Any], words: str
) -> None:
    [problem] = check(**change).problems()
    assert re.search(words, problem)


def test_without_rows_there_is_no_perplexity_to_miss() -> None:
    bare = check(rows=0, perplexity_before=None, perplexity_after=None)
    assert bare.problems() == ()
    assert bare.perplexity_change is None


@given(st.floats(0, 1), st.floats(0, 10), st.floats(0.5, 2))
def test_a_worse_merge_never_passes_where_a_better_one_fails(
    equal: float, difference: float, ratio: float
) -> None:
    better = check(equal_tokens=equal, mean_difference=difference, perplexity_after=1.02 * ratio)
    worse = check(
        equal_tokens=equal / 2,
        mean_difference=difference * 2 + 0.01,
        perplexity_after=1.02 * (1 + (ratio - 1) * 2) if ratio > 1 else 1.02 * ratio / 2,
    )
    assert len(worse.problems()) >= len(better.problems())
