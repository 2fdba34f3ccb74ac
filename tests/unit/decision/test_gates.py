"""Each gate: what passes, what fails, and what cannot be told."""

from __future__ import annotations

import pytest

from slm_core.decision import MULTI_TURN, DecisionSpec, decide
from slm_core.records import GateResult, Metric

SPEC = DecisionSpec()


def gate(decision, name, track="toolcall") -> GateResult:
    (found,) = [g for g in decision.gates if (g.gate, g.track) == (name, track)]
    return found


def with_metric(build, name, metric):
    """Return an evaluation of ``toolcall`` where one score of the adapter is ``metric``."""
    good = build.track("toolcall", 0.97)
    adapter = good.arms[2].model_copy(update={"metrics": good.arms[2].metrics | {name: metric}})
    return build.evaluation([*good.arms[:2], adapter], good.paired)


@pytest.mark.parametrize(
    ("name", "metric", "threshold"),
    [
        ("valid", "valid_call_rate", 0.90),
        ("exact", "args_exact_rate", 0.70),
        ("f1", "args_f1", 0.80),
        ("precision", "args_precision", 0.85),
        ("recall", "args_recall", 0.85),
        ("name_match", "name_match_rate", 0.80),
        ("reference_f1", "args_f1", 0.744),
    ],
)
@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.0, 0.02, "pass"),
        (0.01, 0.03, "pass"),
        (-0.001, 0.03, "inconclusive"),
        (-0.03, 0.0, "inconclusive"),
        (-0.03, -0.001, "fail"),
    ],
)
def test_a_threshold_is_held_against_the_whole_interval(
    build, name, metric, threshold, low, high, verdict
):
    value = threshold + (low + high) / 2
    score = Metric(value=value, n=300, low=threshold + low, high=threshold + high)

    found = gate(decide(with_metric(build, metric, score), SPEC), name)

    assert (found.verdict, found.value, found.threshold, found.n) == (
        verdict,
        value,
        threshold,
        300,
    )
    assert metric in found.reason
    assert found.required == (name != "reference_f1")


def test_names_are_matched_on_tool_calls_only(build):
    decision = decide(build.both(0.95, 0.95), SPEC)

    tracks = {g.track for g in decision.gates if g.gate == "name_match"}
    assert tracks == {"toolcall"}


@pytest.mark.parametrize(
    ("name", "value", "verdict"),
    [
        ("not_worse_than_teacher", 0.02, "pass"),
        ("not_worse_than_teacher", -0.005, "pass"),
        ("not_worse_than_teacher", -0.006, "inconclusive"),
        ("not_worse_than_teacher", -0.034, "inconclusive"),
        ("not_worse_than_teacher", -0.036, "fail"),
        ("no_loss_in_production", 0.015, "pass"),
        ("no_loss_in_production", 0.01, "inconclusive"),
        ("no_loss_in_production", -0.016, "fail"),
        ("beats_teacher", 0.016, "pass"),
        ("beats_teacher", 0.015, "inconclusive"),
        ("beats_teacher", -0.015, "fail"),
        ("scale_up", 0.0, "pass"),
        ("scale_up", -0.07, "pass"),
        ("scale_up", -0.09, "inconclusive"),
        ("scale_up", -0.12, "fail"),
    ],
)
def test_the_teacher_is_compared_pairwise(build, name, value, verdict):
    good = build.track("toolcall", 0.93)
    paired = [build.difference("toolcall", value, half=0.015)]

    found = gate(decide(build.evaluation(good.arms, paired), SPEC), name)

    assert found.verdict == verdict
    assert found.required == (name == "not_worse_than_teacher")


def test_two_perfect_arms_show_no_loss_and_no_gain(build):
    perfect = build.track("toolcall", 1.0, teacher=1.0)
    paired = [build.difference("toolcall", 0.0, half=0.0)]

    decision = decide(build.evaluation(perfect.arms, paired), SPEC)

    assert gate(decision, "no_loss_in_production").verdict == "pass"
    assert gate(decision, "beats_teacher").verdict == "fail"
    assert gate(decision, "scale_up").value == 1.0


@pytest.mark.parametrize("nothing", [0.0, 1e-273, 5e-324])
def test_a_teacher_that_scores_nothing_gives_no_part(build, nothing):
    found = build.track("toolcall", 0.9, teacher=nothing)
    paired = [build.difference("toolcall", 0.0)]

    decision = decide(build.evaluation(found.arms, paired), SPEC)

    assert gate(decision, "scale_up").verdict == "inconclusive"


@pytest.mark.parametrize(
    ("value", "gap", "verdict"),
    [
        (-0.63, 0.0, "pass"),
        (-0.016, 0.0, "pass"),
        (-0.015, 0.0, "inconclusive"),
        (0.015, 0.0, "fail"),
        (-0.05, 0.1, "fail"),
        (-0.12, 0.1, "pass"),
    ],
)
def test_a_proven_gap_of_the_bare_student_advises_to_fine_tune(build, value, gap, verdict):
    good = build.track("toolcall", 0.95)
    paired = [build.difference("toolcall", value, a="student")]

    decision = decide(build.evaluation(good.arms, paired), DecisionSpec(baseline_gap=gap))

    found = gate(decision, "baseline_gap")
    assert (found.verdict, found.required) == (verdict, False)
    assert found.value == pytest.approx(-value)


@pytest.mark.parametrize(("errors", "verdict"), [(0, "pass"), (4, "pass"), (5, "fail")])
def test_a_server_that_fails_spoils_the_numbers(build, errors, verdict):
    good = build.track("toolcall", 0.97)
    adapter = good.arms[2].model_copy(update={"errors": errors})

    decision = decide(build.evaluation([*good.arms[:2], adapter], good.paired), SPEC)

    found = gate(decision, "backend_errors")
    assert (found.verdict, found.value, found.n) == (verdict, errors / 400, 400)
    assert decision.outcome == ("SUCCESS" if verdict == "pass" else "FAILURE")


@pytest.mark.parametrize(("errors", "comparable"), [(4, True), (5, False)])
def test_a_teacher_whose_requests_failed_is_no_measure(build, errors, comparable):
    good = build.track("toolcall", 0.96, teacher=0.9)
    teacher = next(arm for arm in good.arms if arm.arm == "teacher")
    failing = teacher.model_copy(update={"errors": errors})
    arms = [failing if arm is teacher else arm for arm in good.arms]

    decision = decide(build.evaluation(arms, good.paired), SPEC)

    against = ("not_worse_than_teacher", "beats_teacher", "no_loss_in_production", "scale_up")
    found = {gate(decision, name).verdict for name in against}
    assert found == ({"pass"} if comparable else {"inconclusive"})
    assert decision.outcome == ("SUCCESS" if comparable else "PARTIAL")
    if not comparable:
        said = gate(decision, "not_worse_than_teacher").reason
        assert said == "5 of 400 requests to the teacher failed, at most 1.0% may: it is no measure"


@pytest.mark.parametrize("adapter", [0.99, 0.1])
def test_too_few_rows_decide_nothing(build, adapter):
    decision = decide(build.track("toolcall", adapter, n=99), SPEC)

    assert {g.verdict for g in decision.gates} == {"inconclusive"}
    assert decision.outcome == "PARTIAL"
    assert "99 rows are fewer than the 100 needed" in gate(decision, "f1").reason
    enough = decide(build.track("toolcall", adapter, n=100), SPEC)
    assert gate(enough, "f1").verdict != "inconclusive"


def test_missing_evidence_is_never_a_pass(build):
    good = build.track("toolcall", 0.97)
    bare = good.arms[2].model_copy(update={"metrics": {}})

    decision = decide(build.evaluation([bare], []), SPEC)

    assert {(g.verdict, g.value, g.n) for g in decision.gates} == {("inconclusive", None, 0)}
    assert decision.outcome == "PARTIAL"


def test_a_score_that_is_no_number_decides_nothing(build):
    nan = Metric(value=float("nan"), n=400, low=float("nan"), high=float("nan"))

    assert gate(decide(with_metric(build, "args_f1", nan), SPEC), "f1").verdict == "inconclusive"


@pytest.mark.parametrize(
    ("scores", "spread", "floor", "outcome"),
    [
        ([0.9, 0.85, 0.95], "pass", "pass", "SUCCESS"),
        ([0.95, 0.60, 0.90], "fail", "pass", "FAILURE"),
        ([0.60, 0.62, 0.40], "pass", "fail", "FAILURE"),
        ([0.60, 0.62, 0.48], "pass", "inconclusive", "SUCCESS"),
        ([0.9], "inconclusive", "inconclusive", "SUCCESS"),
        ([], "inconclusive", "inconclusive", "SUCCESS"),
    ],
)
def test_weak_domains_stop_a_promotion(build, scores, spread, floor, outcome):
    domains = {"toolcall": build.domains(*scores)}

    decision = decide(build.track("toolcall", 0.97), SPEC, domain_scores=domains)

    assert gate(decision, "domain_spread").verdict == spread
    assert gate(decision, "domain_floor").verdict == floor
    assert decision.outcome == outcome


def test_the_spread_is_the_sample_standard_deviation(build):
    domains = {"toolcall": build.domains(0.8, 0.9, 1.0)}

    decision = decide(build.track("toolcall", 0.97), SPEC, domain_scores=domains)

    assert gate(decision, "domain_spread").value == pytest.approx(0.1)
    assert "'domain 0'" in gate(decision, "domain_floor").reason


def test_thin_domains_hide_neither_a_pass_nor_a_fail(build):
    thin = build.domains(0.1, n=19)
    strong, weak = build.domains(0.9, 0.9, n=60), build.domains(0.9, 0.2, n=60)

    def verdicts(scores):
        decision = decide(build.track("toolcall", 0.97), SPEC, domain_scores={"toolcall": scores})
        return [gate(decision, name).verdict for name in ("domain_spread", "domain_floor")]

    assert verdicts(strong) == ["pass", "pass"]
    assert verdicts(strong + thin) == ["inconclusive", "inconclusive"]
    assert verdicts(weak + thin) == ["fail", "fail"]
    assert verdicts(thin) == ["inconclusive", "inconclusive"]


def test_domains_can_be_required(build):
    spec = DecisionSpec(require_domains=True)

    assert decide(build.track("toolcall", 0.97), spec).outcome == "PARTIAL"


def test_a_gate_without_a_threshold_is_not_put(build):
    decision = decide(build.track("toolcall", 0.97), MULTI_TURN)

    assert "exact" not in {g.gate for g in decision.gates}
    assert gate(decision, "f1").threshold == 0.60


def test_the_bare_student_can_be_the_candidate(build):
    arms = [build.arm("teacher", "toolcall", 0.93), build.arm("student", "toolcall", 0.96)]
    paired = [build.difference("toolcall", 0.03, a="student")]

    decision = decide(build.evaluation(arms, paired), DecisionSpec(candidate="student"))

    assert decision.outcome == "SUCCESS"
    assert gate(decision, "baseline_gap").verdict == "fail"


def test_the_spec_refuses_thresholds_that_are_no_share():
    for wrong in ({"f1": 80}, {"max_deficit": -0.1}, {"min_rows": 0}, {"fone": 0.8}):
        with pytest.raises(ValueError, match="1 validation error"):
            DecisionSpec.model_validate(wrong)
