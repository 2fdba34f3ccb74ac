"""All gates to one decision. Pure: the same evaluation and spec give the same answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from slm_core.decision.actions import next_actions
from slm_core.decision.evidence import Case
from slm_core.decision.gates import GATES
from slm_core.decision.spec import DecisionSpec
from slm_core.records import (
    TRACKS,
    Decision,
    DomainScore,
    Evaluation,
    GateResult,
    Outcome,
    Track,
    content_id,
)

NO_DOMAINS: Mapping[Track, Sequence[DomainScore]] = {}


def decide(
    evaluation: Evaluation,
    spec: DecisionSpec,
    *,
    domain_scores: Mapping[Track, Sequence[DomainScore]] = NO_DOMAINS,
) -> Decision:
    """Put every gate to every track and say what follows.

    SUCCESS: every required gate passes on every track. FAILURE: on every track some required
    gate fails, or the candidate was not scored at all. PARTIAL: anything between, be it that
    one track is ready or that the evidence is thin.

    Args:
        evaluation: Scores of the arms and their paired differences.
        spec: Thresholds.
        domain_scores: The candidate's F1 by domain, if domains are known.
    """
    findings = [
        finding
        for track in _tracks(evaluation, spec)
        for gate in GATES
        if (finding := gate(Case(evaluation, track, spec, tuple(domain_scores.get(track, ())))))
    ]
    gates = tuple(finding.result for finding in findings)
    outcome = _outcome(evaluation, spec, gates)
    content = {
        "evaluation": evaluation.id,
        "spec": spec.model_dump(mode="json"),
        "gates": [gate.model_dump(mode="json") for gate in gates],
    }
    return Decision(
        id=content_id("decision", content),
        evaluation_id=evaluation.id,
        # Of another arm it says nothing about the adapter that was scored beside it.
        adapter_id=evaluation.adapter_id if spec.candidate == "adapter" else None,
        outcome=outcome,
        gates=gates,
        next_actions=next_actions(evaluation, spec, outcome, findings),
    )


def _tracks(evaluation: Evaluation, spec: DecisionSpec) -> Sequence[Track]:
    measured = {arm.track for arm in evaluation.arms}
    return spec.tracks or [track for track in TRACKS if track in measured]


def _outcome(evaluation: Evaluation, spec: DecisionSpec, gates: Sequence[GateResult]) -> Outcome:
    if not any(arm.arm == spec.candidate for arm in evaluation.arms):
        return "FAILURE"
    required = [gate for gate in gates if gate.required]
    if all(gate.verdict == "pass" for gate in required):
        return "SUCCESS"
    failing = {gate.track for gate in required if gate.verdict == "fail"}
    return "FAILURE" if failing == {gate.track for gate in required} else "PARTIAL"
