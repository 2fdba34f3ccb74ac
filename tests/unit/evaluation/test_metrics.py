"""Metrics against hand-computed tables, and the traps that other harnesses fell into."""

from __future__ import annotations

import pytest

from slm_core.evaluation.intervals import wilson
from slm_core.evaluation.metrics import domain_scores, draw, measure, tabulate
from slm_core.prompting.formats import NO_CALL_TEXT
from slm_core.records import CaseResult, FailureClass, Metric, RowScore, View

MISS = RowScore(
    parsed=False,
    name_match=False,
    exact=False,
    true_positives=0,
    predicted=0,
    gold=2,
    failure=FailureClass.BAD_JSON,
)

OVER = RowScore(
    parsed=True,
    name_match=False,
    exact=False,
    true_positives=0,
    predicted=2,
    gold=0,
    failure=FailureClass.OVER_CALL,
)


def scored(tp: int, predicted: int, gold: int, *, name_match: bool = True) -> RowScore:
    exact = name_match and tp == predicted == gold
    return RowScore(
        parsed=True,
        name_match=name_match,
        exact=exact,
        true_positives=tp,
        predicted=predicted,
        gold=gold,
        failure=FailureClass.NONE if exact else FailureClass.WRONG_VALUE,
    )


def result(number: int, strict: RowScore, lenient: RowScore | None = None, **fields) -> CaseResult:
    return CaseResult(
        **{
            "case_id": f"case-{number:03}",
            "track": "toolcall",
            "arm": "adapter",
            "output": "",
            "gold": "gold",
            "strict": strict,
            "lenient": lenient or strict,
            "cluster": f"c{number}",
            "seconds": 0.1,
            "prompt_tokens": 1,
            "completion_tokens": 1,
            "cost_nanousd": None,
            **fields,
        }
    )


def metrics_of(results: list[CaseResult], view: View = "strict") -> dict[str, Metric]:
    table = tabulate(results, view)
    (draws,) = draw([table], seed=1, resamples=500)
    return measure(results[0].track, table, draws)


def values(metrics: dict[str, Metric]) -> dict[str, float]:
    return {name: round(metric.value, 6) for name, metric in metrics.items()}


TABLE = [
    # tp, predicted, gold: sums 5, 8, 10
    result(1, scored(2, 2, 2)),
    result(2, scored(1, 2, 2)),
    result(3, MISS.model_copy(update={"gold": 3})),
    result(4, scored(2, 3, 2)),
    result(5, scored(0, 1, 1, name_match=False)),
    result(6, scored(0, 0, 0), gold=NO_CALL_TEXT),
]


def test_a_table_by_hand():
    assert values(metrics_of(TABLE)) == {
        "valid_call_rate": round(5 / 6, 6),
        "name_match_rate": round(4 / 6, 6),
        "args_exact_rate": round(2 / 6, 6),
        "over_call_rate": 0.0,
        "args_precision": 5 / 8,
        "args_recall": 0.5,
        "args_f1": round(10 / 18, 6),
        # (1 + 1/2 + 0 + 4/5 + 0 + 1) / 6
        "macro_args_f1": 0.55,
    }


def test_the_structured_track_has_its_own_names():
    structured = [row.model_copy(update={"track": "structured"}) for row in TABLE]
    assert values(metrics_of(structured)) == {
        "json_valid_rate": round(5 / 6, 6),
        "exact_match_rate": round(2 / 6, 6),
        "over_call_rate": 0.0,
        "field_precision": 5 / 8,
        "field_recall": 0.5,
        "field_f1": round(10 / 18, 6),
        "macro_field_f1": 0.55,
    }


def test_every_metric_has_its_rows_and_an_interval_around_it():
    metrics = metrics_of(TABLE)
    assert {name: m.n for name, m in metrics.items()} == dict.fromkeys(metrics, 6) | {
        "over_call_rate": 1
    }
    for metric in metrics.values():
        assert 0 <= metric.low <= metric.value <= metric.high <= 1
    rate = metrics["args_exact_rate"]
    assert (rate.low, rate.high) == wilson(2 / 6, 6)


def test_the_lenient_view_is_a_table_of_its_own():
    fenced = [result(i, MISS, scored(2, 2, 2)) for i in range(4)]
    assert values(metrics_of(fenced, "strict"))["args_f1"] == 0
    assert values(metrics_of(fenced, "lenient"))["args_f1"] == 1


def test_all_rows_unread_gives_zeros_not_missing_keys():
    metrics = metrics_of([result(i, MISS) for i in range(10)])
    assert set(values(metrics).values()) == {0.0}
    assert {m.n for m in metrics.values()} == {10}
    assert len(metrics) == 7
    assert metrics["args_f1"].high == pytest.approx(wilson(0, 10).high)


def test_unread_rows_cost_recall_and_f1_and_stay_in_every_n():
    metrics = metrics_of([result(0, scored(2, 2, 2)), *(result(i, MISS) for i in range(1, 10))])
    assert values(metrics)["args_precision"] == 1.0
    assert values(metrics)["args_recall"] == 0.1
    assert values(metrics)["args_f1"] == round(4 / 22, 6)
    assert values(metrics)["macro_args_f1"] == 0.1
    assert {m.n for m in metrics.values()} == {10}


def test_rows_without_arguments_count_as_a_whole():
    right, wrong = scored(0, 0, 0), MISS.model_copy(update={"gold": 0})
    found = values(metrics_of([result(0, right), result(1, right), result(2, wrong)]))
    assert found["args_precision"] == found["args_recall"] == found["args_f1"] == 0.666667
    assert found["macro_args_f1"] == 0.666667


def test_an_over_call_with_arguments_costs_precision():
    found = values(metrics_of([result(0, scored(2, 2, 2)), result(1, OVER, gold=NO_CALL_TEXT)]))
    assert found["over_call_rate"] == 1.0
    assert (found["args_precision"], found["args_recall"]) == (0.5, 1.0)
    assert found["macro_args_f1"] == 0.5


def test_over_calls_are_told_by_meaning_in_both_views():
    prose = MISS.model_copy(update={"gold": 0, "failure": FailureClass.PROSE})
    empty = MISS.model_copy(update={"gold": 0, "failure": FailureClass.EMPTY})
    attempt = MISS.model_copy(update={"gold": 0, "failure": FailureClass.TRUNCATED})
    rows = [
        result(0, prose, scored(0, 0, 0), gold=NO_CALL_TEXT),
        result(1, empty, gold=NO_CALL_TEXT),
        result(2, attempt, gold=NO_CALL_TEXT),
        result(3, MISS),
    ]
    for view in ("strict", "lenient"):
        over = metrics_of(rows, view)["over_call_rate"]
        assert (over.value, over.n) == (pytest.approx(1 / 3), 3)
    assert metrics_of(rows, "strict")["args_exact_rate"].value == 0


def in_conversations(rows_of_each: list[list[bool]]) -> list[CaseResult]:
    """One list of right and wrong rows for each conversation."""
    marks = [(name, right) for name, rows in enumerate(rows_of_each) for right in rows]
    return [
        result(at, scored(2, 2, 2) if right else MISS, cluster=f"c{name}")
        for at, (name, right) in enumerate(marks)
    ]


def test_rows_of_one_conversation_do_not_make_a_rate_surer():
    # 40 conversations of 10 rows each, 6 of them wrong as a whole.
    found = metrics_of(in_conversations([[at >= 6] * 10 for at in range(40)]))
    assert (wilson(0.85, 400).low, wilson(0.85, 400).high) == pytest.approx(
        (0.812, 0.882), abs=1e-3
    )
    for name in ("valid_call_rate", "name_match_rate", "args_exact_rate"):
        rate = found[name]
        assert (rate.value, rate.n) == (0.85, 400)
        assert (rate.low, rate.high) == (found["args_recall"].low, found["args_recall"].high)
        assert rate.low < 0.75 < 0.94 < rate.high


def test_one_row_a_conversation_leaves_the_interval_of_independent_rows():
    found = metrics_of([result(at, scored(2, 2, 2) if at >= 6 else MISS) for at in range(40)])
    for name in ("valid_call_rate", "name_match_rate", "args_exact_rate"):
        assert (found[name].low, found[name].high) == wilson(34 / 40, 40)


@pytest.mark.parametrize("right", [True, False])
def test_conversations_that_all_agree_are_judged_by_their_number(right: bool):
    rate = metrics_of(in_conversations([[right] * 10] * 20))["args_exact_rate"]
    assert (rate.low, rate.high) == wilson(float(right), 20)


def test_what_rows_share_never_narrows_an_interval():
    # 99 conversations, one of them with two rows: the bootstrap alone would begin at .97.
    found = metrics_of(in_conversations([[False], [True, True], *[[True]] * 97]))
    rate, alone = found["args_exact_rate"], wilson(0.99, 100)
    assert rate.n == 100
    assert rate.low == alone.low < 0.95
    assert rate.high == 1.0 > alone.high


def test_an_over_call_rate_counts_the_conversations_it_is_about():
    calls = [result(at, scored(2, 2, 2), cluster=f"c{at // 10}") for at in range(100)]
    refusals = [
        result(100 + at, OVER if at < 5 else scored(0, 0, 0), gold=NO_CALL_TEXT, cluster=f"c{at}")
        for at in range(10)
    ]
    rate = metrics_of([*calls, *refusals])["over_call_rate"]
    assert (rate.value, rate.n) == (0.5, 10)
    assert (rate.low, rate.high) == wilson(0.5, 10)  # one such row in each conversation
    together = [row.model_copy(update={"cluster": "c0"}) for row in refusals]
    rate = metrics_of([*calls, *together])["over_call_rate"]
    assert (rate.low, rate.high) == wilson(0.5, 1)  # all in one, which many resamples lack


def test_without_no_call_rows_there_is_no_over_call_rate():
    assert "over_call_rate" not in metrics_of(TABLE[:5])


def test_the_order_of_rows_does_not_matter():
    assert metrics_of(TABLE) == metrics_of(TABLE[::-1])


def test_domains_are_scored_apart_and_nameless_rows_left_out():
    rows = [
        result(1, scored(2, 2, 2), domain="travel"),
        result(2, scored(1, 2, 2), domain="travel"),
        result(3, MISS, domain="bank"),
        result(4, scored(2, 2, 2)),
    ]
    bank, travel = domain_scores(rows, seed=0, resamples=200)
    assert (bank.domain, bank.f1.value, bank.f1.n) == ("bank", 0.0, 1)
    assert (travel.domain, travel.f1.value, travel.f1.n) == ("travel", 0.75, 2)
    assert bank.f1.high == wilson(0, 1).high
