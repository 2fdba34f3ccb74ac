"""The outcome and what to do next; better scores never make anything worse."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_core.decision import DecisionSpec, decide
from slm_core.decision.gates import GATES
from slm_core.records import Metric, PairedDifference

SPEC = DecisionSpec()


@pytest.mark.parametrize(
    ("structured", "toolcall", "outcome"),
    [
        (0.95, 0.95, "SUCCESS"),
        (0.95, 0.40, "PARTIAL"),
        (0.40, 0.40, "FAILURE"),
        (0.915, 0.95, "PARTIAL"),
        (0.915, 0.40, "PARTIAL"),
    ],
)
def test_the_outcome_needs_every_required_gate_on_every_track(build, structured, toolcall, outcome):
    assert decide(build.both(structured, toolcall), SPEC).outcome == outcome


def test_a_track_the_adapter_was_not_scored_on_is_no_success(build):
    good = build.both(0.95, 0.95)
    arms = [a for a in good.arms if (a.arm, a.track) != ("adapter", "toolcall")]

    decision = decide(build.evaluation(arms, good.paired), SPEC)

    assert decision.outcome == "PARTIAL"
    assert "structured is ready: every required gate passes there." in decision.next_actions


def test_a_track_that_must_be_shown_but_is_not_there_is_no_success(build):
    spec = DecisionSpec(tracks=("structured", "toolcall"))

    assert decide(build.track("structured", 0.95), spec).outcome == "PARTIAL"
    assert decide(build.track("structured", 0.95), SPEC).outcome == "SUCCESS"


def test_without_an_adapter_the_gap_advises_to_fine_tune(build):
    good = build.both(0.95, 0.95)
    arms = [arm for arm in good.arms if arm.arm != "adapter"]
    paired = [pair for pair in good.paired if pair.a != "adapter"]

    decision = decide(build.evaluation(arms, paired), SPEC)

    assert decision.outcome == "FAILURE"
    assert decision.next_actions[0].startswith("Train an adapter and evaluate it")
    assert any(a.startswith("Fine-tune for structured") for a in decision.next_actions)


def test_an_evaluation_of_nothing_is_a_failure(build):
    decision = decide(build.evaluation([], []), SPEC)

    assert (decision.outcome, decision.gates) == ("FAILURE", ())
    assert len(decision.next_actions) == 1


def test_success_says_promote_and_names_the_adapter(build):
    decision = decide(build.both(0.96, 0.96), SPEC)

    assert decision.next_actions == ("Promote ad-1: shadow first, then canary, then live.",)


def test_a_success_of_another_arm_is_no_verdict_on_the_adapter(build):
    arms = [
        build.arm("teacher", "toolcall", 0.9),
        build.arm("student_cep", "toolcall", 0.97),
        build.arm("adapter", "toolcall", 0.1),
    ]
    paired = [build.difference("toolcall", 0.07, a="student_cep")]
    decision = decide(build.evaluation(arms, paired), DecisionSpec(candidate="student_cep"))
    assert (decision.outcome, decision.adapter_id) == ("SUCCESS", None)
    assert decision.next_actions[0].startswith("Promote the student_cep")


def test_success_below_the_teacher_keeps_it_as_fallback(build):
    decision = decide(build.both(0.96, 0.926), SPEC)

    assert decision.outcome == "SUCCESS"
    assert len(decision.next_actions) == 2
    assert decision.next_actions[1].startswith("Keep the teacher as fallback on toolcall:")


def test_a_failing_track_gets_a_plan(build):
    bad = build.track("toolcall", 0.4)
    adapter = bad.arms[2].model_copy(
        update={"failures": {"none": 100, "Markdown fence": 90, "wrong value": 210}}
    )

    decision = decide(build.evaluation([*bad.arms[:2], adapter], bad.paired), SPEC)

    said = "\n".join(decision.next_actions)
    assert "Keep the teacher on toolcall: adapter minus teacher on args_f1 -0.530" in said
    assert "Look at the failure class 'wrong value' on toolcall first: 210 of 400" in said
    assert "Train on toolcall with a context prefix, or for more epochs" in said
    assert "Collect more training examples for toolcall, or raise epochs: exact 0.400 of" in said
    assert "Do not scale up" not in said
    assert "Promote" not in said


def test_an_undecided_gate_asks_for_the_rows_that_would_settle_it(build):
    wide = Metric(value=0.84, n=100, low=0.76, high=0.92)
    good = build.track("toolcall", 0.97)
    adapter = good.arms[2].model_copy(update={"metrics": good.arms[2].metrics | {"args_f1": wide}})

    decision = decide(build.evaluation([*good.arms[:2], adapter], good.paired), SPEC)

    assert decision.outcome == "PARTIAL"
    # A half width of .08 must shrink to .04: four times the rows.
    assert "Collect about 300 more test rows for toolcall to settle f1." in decision.next_actions


def test_too_few_rows_ask_for_the_rest(build):
    decision = decide(build.track("toolcall", 0.97, n=60), SPEC)

    assert any("Collect about 40 more test rows" in a for a in decision.next_actions)


def test_missing_evidence_is_asked_for(build):
    good = build.track("toolcall", 0.97)

    decision = decide(build.evaluation(good.arms, []), SPEC)

    assert (
        "Evaluate what toolcall still lacks: no evidence for not_worse_than_teacher."
        in decision.next_actions
    )


def test_weak_domains_and_a_failing_server_are_named(build):
    good = build.track("toolcall", 0.97)
    adapter = good.arms[2].model_copy(update={"errors": 40})
    domains = {"toolcall": build.domains(0.9, 0.9, 0.2)}

    decision = decide(
        build.evaluation([*good.arms[:2], adapter], good.paired), SPEC, domain_scores=domains
    )

    said = "\n".join(decision.next_actions)
    assert "Collect training examples of the weak domains on toolcall" in said
    assert "'domain 2'" in said
    assert "Mend the server and evaluate toolcall again: 40 of 400" in said


def test_the_same_evidence_gives_the_same_decision(build):
    one, again = (decide(build.both(0.95, 0.9), SPEC) for _ in range(2))

    assert one.id == again.id
    assert one.model_copy(update={"created_at": again.created_at}) == again
    assert decide(build.both(0.95, 0.9), DecisionSpec(f1=0.7)).id != one.id


RANK = {"fail": 0, "inconclusive": 1, "pass": 2}
OUTCOMES = {"FAILURE": 0, "PARTIAL": 1, "SUCCESS": 2}
shares = st.floats(0, 1)
widths = st.floats(0, 0.3)


@settings(max_examples=300, deadline=None)
@given(
    scores=st.lists(st.tuples(shares, widths, widths), min_size=6, max_size=6),
    pair=st.tuples(st.floats(-1, 1), widths, widths),
    raised=st.lists(st.floats(0, 0.5), min_size=7, max_size=7),
    domains=st.lists(st.tuples(shares, st.integers(1, 80)), max_size=5),
    n=st.integers(1, 400),
    teacher=st.floats(0, 1),
    errors=st.integers(0, 20),
)
def test_raising_the_candidates_scores_never_worsens_a_verdict(
    build, scores, pair, raised, domains, n, teacher, errors
):
    def decide_with(lift):
        arm = build.arm("adapter", "toolcall", 0.5, n=n, errors=errors)
        metrics = {
            name: Metric(value=value + up, n=n, low=value - below + up, high=value + above + up)
            for name, (value, below, above), up in zip(arm.metrics, scores, lift[:6], strict=True)
        }
        value, below, above = pair[0] + lift[6], pair[1], pair[2]
        difference = PairedDifference(
            track="toolcall",
            metric="args_f1",
            a="adapter",
            b="teacher",
            difference=Metric(value=value, n=n, low=value - below, high=value + above),
        )
        arms = [
            arm.model_copy(update={"metrics": metrics}),
            build.arm("teacher", "toolcall", teacher, n=n),
        ]
        known = [build.domains(f1, n=rows)[0] for f1, rows in domains]
        evaluation = build.evaluation(arms, [difference])
        return decide(evaluation, SPEC, domain_scores={"toolcall": known})

    before, after = decide_with([0.0] * 7), decide_with(raised)

    for one, other in zip(before.gates, after.gates, strict=True):
        assert RANK[other.verdict] >= RANK[one.verdict], (one, other)
    assert OUTCOMES[after.outcome] >= OUTCOMES[before.outcome]


@settings(max_examples=100, deadline=None)
@given(
    domains=st.lists(st.tuples(shares, st.integers(1, 80)), min_size=1, max_size=6),
    lift=shares,
)
def test_raising_the_weakest_domain_never_worsens_the_floor(build, domains, lift):
    def floor(scores):
        known = {"toolcall": [build.domains(f1, n=rows)[0] for f1, rows in scores]}
        decision = decide(build.track("toolcall", 0.97), SPEC, domain_scores=known)
        (found,) = [g for g in decision.gates if g.gate == "domain_floor"]
        return RANK[found.verdict]

    weakest, *others = sorted(domains)

    assert floor([(weakest[0] + lift, weakest[1]), *others]) >= floor(domains)


@settings(max_examples=200, deadline=None)
@given(value=shares, below=widths, above=widths, n=st.integers(0, 1000), threshold=st.floats(0, 1))
def test_no_verdict_but_by_the_whole_interval_and_enough_rows(
    build, value, below, above, n, threshold
):
    arm = build.arm("adapter", "structured", 0.9, n=400)
    metric = Metric(value=value, n=n, low=value - below, high=value + above)
    arm = arm.model_copy(update={"metrics": arm.metrics | {"field_f1": metric}})

    decision = decide(build.evaluation([arm], []), DecisionSpec(f1=threshold))

    (found,) = [g for g in decision.gates if g.gate == "f1"]
    if found.verdict == "pass":
        assert metric.low >= threshold
    if found.verdict == "fail":
        assert metric.high < threshold
    if n < SPEC.min_rows:
        assert found.verdict == "inconclusive"


def test_every_gate_explains_itself(build):
    decision = decide(build.both(0.95, 0.4), SPEC, domain_scores={"toolcall": []})

    assert [g.gate for g in decision.gates if g.track == "toolcall"] == [
        gate.__name__ for gate in GATES
    ]
    assert all(len(g.reason) > 20 for g in decision.gates)
    assert all(gate.__doc__ for gate in GATES)
