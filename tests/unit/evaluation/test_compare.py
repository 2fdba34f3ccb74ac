"""Paired differences: McNemar's exact test, paired bootstrap, same cases only."""

from __future__ import annotations

import pytest

from slm_core.errors import EvaluationError
from slm_core.evaluation.compare import Side, mcnemar_exact, paired_differences, sign_flip_exact
from slm_core.evaluation.metrics import draw, tabulate
from slm_core.records import CaseResult, FailureClass, PairedDifference, RowScore


@pytest.mark.parametrize(
    ("a_only", "b_only", "p"),
    [
        (0, 0, 1.0),
        (5, 5, 1.0),
        (6, 0, 2 / 64),
        (10, 2, 2 * (1 + 12 + 66) / 4096),
        (2, 10, 2 * (1 + 12 + 66) / 4096),
        (1, 0, 1.0),
    ],
)
def test_mcnemar_by_hand(a_only, b_only, p):
    assert mcnemar_exact(a_only, b_only) == pytest.approx(p, rel=1e-12)


def test_mcnemar_with_thousands_of_discordant_rows():
    assert mcnemar_exact(5000, 5000) == 1.0
    assert mcnemar_exact(6000, 4000) < 1e-80
    assert 0.04 < mcnemar_exact(5100, 4900) < 0.05


@pytest.mark.parametrize(("a_only", "b_only"), [(0, 0), (5, 5), (6, 0), (10, 2), (1, 0), (40, 25)])
def test_flipping_conversations_of_one_row_is_mcnemar(a_only, b_only):
    surplus = [1] * a_only + [-1] * b_only + [0] * 7
    assert sign_flip_exact(surplus) == pytest.approx(mcnemar_exact(a_only, b_only), rel=1e-12)


@pytest.mark.parametrize(
    ("surplus", "p"),
    [
        ([10, 10, 10, 10], 2 / 16),
        ([3, 1], 2 / 4),  # sums 4, 2, -2, -4
        ([3, -1], 1.0),
        ([4, 2, 1, -1], 6 / 16),  # 6 of the 16 sums are 6 or more, either way
        ([0, 0], 1.0),
    ],
)
def test_flipping_conversations_by_hand(surplus, p):
    assert sign_flip_exact(surplus) == pytest.approx(p, rel=1e-12)


def rows(pattern: str, arm: str, *, wide: int = 1) -> list[CaseResult]:
    """One row per character: 1 is exact, 0 is unreadable; ``wide`` rows share a conversation."""
    found = []
    for number, mark in enumerate(pattern):
        right = mark == "1"
        score = RowScore(
            parsed=right,
            name_match=right,
            exact=right,
            true_positives=2 * right,
            predicted=2 * right,
            gold=2,
            failure=FailureClass.NONE if right else FailureClass.PROSE,
        )
        found.append(
            CaseResult(
                case_id=f"case-{number:04}",
                track="structured",
                arm=arm,
                output="",
                gold="gold",
                strict=score,
                lenient=score,
                cluster=f"c{number // wide}",
                seconds=0.0,
                prompt_tokens=0,
                completion_tokens=0,
                cost_nanousd=None,
            )
        )
    return found


def compare(a: str, b: str, *, seed: int = 0, wide: int = 1) -> dict[str, PairedDifference]:
    tables = [
        tabulate(rows(marks, arm, wide=wide), "strict")
        for marks, arm in ((a, "adapter"), (b, "teacher"))
    ]
    draws = draw(tables, seed=seed, resamples=1000)
    sides = (
        Side("adapter", tables[0], draws[0]),
        Side("teacher", tables[1], draws[1]),
    )
    return {d.metric: d for d in paired_differences("structured", *sides)}


def test_differences_by_hand():
    found = compare("1111111100", "1100000011")
    exact = found["exact_match_rate"]
    assert (exact.a, exact.b, exact.track) == ("adapter", "teacher", "structured")
    assert (exact.a_only, exact.b_only) == (6, 2)
    assert exact.mcnemar_p == pytest.approx(2 * (1 + 8 + 28) / 256)
    assert (exact.difference.value, exact.difference.n) == (pytest.approx(0.4), 10)
    assert exact.difference.low < 0.4 < exact.difference.high
    # F1: a 16 right of 16 given and 20 wanted, b 8 right of 8 given and 20 wanted.
    f1 = found["field_f1"]
    assert f1.difference.value == pytest.approx(32 / 36 - 16 / 28)
    assert f1.mcnemar_p is None
    assert set(found) == {
        *("json_valid_rate", "exact_match_rate"),
        *("field_precision", "field_recall", "field_f1", "macro_field_f1"),
    }


def test_rows_of_one_conversation_are_no_independent_witnesses():
    # 6 of 8 conversations of ten rows differ, 4 for a and 2 for b: 40 rows against 20.
    a, b = "1" * 40 + "0" * 20 + "1" * 20, "0" * 40 + "1" * 20 + "1" * 20
    apart, together = (compare(a, b, wide=wide)["exact_match_rate"] for wide in (1, 10))
    assert (apart.a_only, apart.b_only) == (together.a_only, together.b_only) == (40, 20)
    assert apart.mcnemar_p == mcnemar_exact(40, 20) < 0.02
    assert together.mcnemar_p == pytest.approx(44 / 64)
    assert together.difference.low < 0 < apart.difference.low


def test_pairing_takes_out_what_the_arms_share():
    shared = "10" * 200
    better = "11" + shared[2:]
    found = compare(better, shared)["field_recall"].difference
    # Arms that differ on one row of 400: unpaired, the half-width would be about 0.07.
    assert found.value == pytest.approx(1 / 400)
    assert found.low >= 0
    assert found.high < 0.01


def test_the_same_seed_gives_the_same_interval():
    a, b = "1101101110" * 5, "1001110110" * 5
    assert compare(a, b) == compare(a, b)
    assert compare(a, b)["field_f1"] != compare(a, b, seed=1)["field_f1"]


def test_two_perfect_arms_differ_by_zero_give_or_take():
    exact = compare("1" * 10, "1" * 10)["exact_match_rate"]
    assert exact.difference.value == 0
    assert exact.mcnemar_p == 1.0
    assert exact.difference.low == pytest.approx(-0.2775, abs=1e-4)


def test_other_cases_are_never_paired():
    with pytest.raises(EvaluationError, match="not run on the same cases"):
        compare("1111", "111")


def test_no_difference_of_over_calls_without_no_call_rows():
    assert "over_call_rate" not in compare("1111", "1110")
