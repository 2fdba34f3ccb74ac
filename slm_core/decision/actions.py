"""What to do next: concrete sentences, derived from the gates that did not pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from slm_core.decision.judging import Finding
from slm_core.decision.spec import DecisionSpec
from slm_core.records import (
    TRACKS,
    Evaluation,
    FailureClass,
    GateResult,
    Outcome,
    Track,
    Verdict,
)

_LEARNABLE = ("exact", "f1", "precision", "recall", "name_match")
"""Gates that more training on more examples can move."""


def next_actions(
    evaluation: Evaluation,
    spec: DecisionSpec,
    outcome: Outcome,
    findings: Sequence[Finding],
) -> tuple[str, ...]:
    """Return what to do next, most urgent first."""
    actions = [*_overall(evaluation, spec, outcome)]
    for track in TRACKS:
        own = [finding for finding in findings if finding.result.track == track]
        if own:
            actions += _for_track(evaluation, spec, outcome, track, own)
    return tuple(dict.fromkeys(actions))


def _overall(evaluation: Evaluation, spec: DecisionSpec, outcome: Outcome) -> Iterator[str]:
    if outcome == "SUCCESS":
        adapter = evaluation.adapter_id if spec.candidate == "adapter" else None
        which = adapter or f"the {spec.candidate}"
        yield f"Promote {which}: shadow first, then canary, then live."
    elif not any(arm.arm == spec.candidate for arm in evaluation.arms):
        what = "Train an adapter and evaluate it" if spec.candidate == "adapter" else "Evaluate it"
        yield f"{what}: the evaluation holds no scores of the {spec.candidate}."


def _for_track(
    evaluation: Evaluation,
    spec: DecisionSpec,
    outcome: Outcome,
    track: Track,
    findings: Sequence[Finding],
) -> Iterator[str]:
    gates = {finding.result.gate: finding.result for finding in findings}
    failed = [g for g in gates.values() if g.required and g.verdict == "fail"]
    if failed:
        worst = gates["not_worse_than_teacher"]
        because = worst if worst in failed else failed[0]
        yield f"Keep the teacher on {track}: {because.reason}."
        yield from _failure_class(evaluation, spec, track)
    if _is(gates, "baseline_gap", "pass") and evaluation.arm(track, "adapter") is None:
        yield f"Fine-tune for {track}: {gates['baseline_gap'].reason}."
    if _is(gates, "valid", "fail"):
        yield (
            f"Train on {track} with a context prefix, or for more epochs: too few answers are in "
            f"the exact format ({gates['valid'].reason})."
        )
    low = [gates[name] for name in _LEARNABLE if _is_short(gates.get(name))]
    if low:
        scores = ", ".join(f"{g.gate} {g.value:.3f} of {g.threshold:.2f}" for g in low)
        yield f"Collect more training examples for {track}, or raise epochs: {scores}."
    for name in ("domain_floor", "domain_spread"):
        if _is(gates, name, "fail"):
            yield f"Collect training examples of the weak domains on {track}: {gates[name].reason}."
    if _is(gates, "backend_errors", "fail"):
        yield f"Mend the server and evaluate {track} again: {gates['backend_errors'].reason}."
    yield from _undecided(track, findings)
    if not failed:
        yield from _limits(track, gates)
    if outcome != "SUCCESS" and all(g.verdict == "pass" for g in gates.values() if g.required):
        yield f"{track} is ready: every required gate passes there."


def _failure_class(evaluation: Evaluation, spec: DecisionSpec, track: Track) -> Iterator[str]:
    arm = evaluation.arm(track, spec.candidate)
    counts = {} if arm is None else {**arm.failures}
    counts.pop(FailureClass.NONE, None)
    if arm and counts:
        name, count = min(counts.items(), key=lambda item: (-item[1], item[0]))
        rows = max(metric.n for metric in arm.metrics.values())
        yield f"Look at the failure class '{name}' on {track} first: {count} of {rows} answers."


def _undecided(track: Track, findings: Sequence[Finding]) -> Iterator[str]:
    """Say what evidence is missing for the required gates."""
    unclear = [f for f in findings if f.result.required and f.result.verdict == "inconclusive"]
    unmeasured = [f.result.gate for f in unclear if f.result.value is None]
    if unmeasured:
        yield f"Evaluate what {track} still lacks: no evidence for {', '.join(unmeasured)}."
    missing = {f.result.gate: f.rows_missing for f in unclear if f.rows_missing}
    if missing:
        rows = max(missing.values())
        yield f"Collect about {rows} more test rows for {track} to settle {', '.join(missing)}."


def _limits(track: Track, gates: dict[str, GateResult]) -> Iterator[str]:
    """Say what a track that fails nothing may still not do."""
    if _is_short(gates.get("scale_up")):
        yield f"Do not scale up training on {track} yet: {gates['scale_up'].reason}."
    production = gates.get("no_loss_in_production")
    if production and production.verdict != "pass":
        yield f"Keep the teacher as fallback on {track}: {production.reason}."


def _is(gates: dict[str, GateResult], name: str, verdict: Verdict) -> bool:
    return name in gates and gates[name].verdict == verdict


def _is_short(gate: GateResult | None) -> bool:
    """Return whether a gate did not pass and its value is below the threshold."""
    return (
        gate is not None
        and gate.verdict != "pass"
        and gate.value is not None
        and gate.threshold is not None
        and gate.value < gate.threshold
    )
