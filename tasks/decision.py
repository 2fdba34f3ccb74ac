"""Scores to a verdict."""

from __future__ import annotations

from pathlib import Path

from slm_core.decision import DecisionSpec, decide
from slm_core.evaluation import read_details
from slm_core.records import TRACKS, Decision, DomainScore, Evaluation, Track
from tasks._wiring import opened_store, step


@step("decide")
def decide_swap(spec: DecisionSpec, evaluation: Evaluation) -> Decision:
    """Judge the candidate by every gate, per-domain scores included, and keep the verdict."""
    from slm_core.evaluation.metrics import domain_scores

    results = read_details(Path(evaluation.details_path))
    scores: dict[Track, list[DomainScore]] = {}
    for track in TRACKS:
        rows = [r for r in results if r.track == track and r.arm == spec.candidate]
        if rows:
            scores[track] = domain_scores(rows, seed=evaluation.seed, resamples=500)
    decision = decide(evaluation, spec, domain_scores=scores)
    with opened_store() as store:
        return store.decisions.save(decision)
