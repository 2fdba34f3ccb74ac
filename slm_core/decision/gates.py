"""The gates: one small pure function each, from the evidence to a verdict with its reason.

``judging.py`` holds the one rule by which all of them judge.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

from slm_core.decision.evidence import NAMES, Case
from slm_core.decision.judging import (
    Finding,
    Question,
    answer,
    domain_answer,
    judge,
    scaled,
    show,
    too_few_domains,
    verdict_on,
)
from slm_core.records import Metric, Verdict

Gate = Callable[[Case], Finding | None]
"""None: the gate does not apply to this track or is left out by the spec."""


def not_worse_than_teacher(case: Case) -> Finding:
    """Non-inferiority on the headline F1, paired."""
    asked = _against_teacher(case, "not_worse_than_teacher", -case.spec.max_deficit)
    return _compare(asked._replace(required=True), case.difference())


def no_loss_in_production(case: Case) -> Finding:
    """The stricter form for full traffic: no loss at all against the teacher, paired."""
    return _compare(_against_teacher(case, "no_loss_in_production", 0.0), case.difference())


def beats_teacher(case: Case) -> Finding:
    """The target of prefix training: better than the teacher, beyond chance."""
    asked = _against_teacher(case, "beats_teacher", 0.0)
    return _compare(asked._replace(strict=True), case.difference())


def valid(case: Case) -> Finding | None:
    """Answers in the exact format."""
    return _score(case, "valid", NAMES[case.track].valid, case.spec.valid)


def exact(case: Case) -> Finding | None:
    """Whole answers right."""
    return _score(case, "exact", NAMES[case.track].exact, case.spec.exact)


def f1(case: Case) -> Finding | None:
    """Headline F1."""
    return _score(case, "f1", NAMES[case.track].f1, case.spec.f1)


def precision(case: Case) -> Finding | None:
    """Of the values answered, the right ones."""
    return _score(case, "precision", NAMES[case.track].precision, case.spec.precision)


def recall(case: Case) -> Finding | None:
    """Of the values wanted, the right ones."""
    return _score(case, "recall", NAMES[case.track].recall, case.spec.recall)


def name_match(case: Case) -> Finding | None:
    """Right tool, on the track that scores it."""
    return _score(case, "name_match", NAMES[case.track].name_match, case.spec.name_match)


def reference_f1(case: Case) -> Finding | None:
    """Headline F1 against the figure of the first prefix-trained adapters."""
    threshold = case.spec.reference_f1.get(case.track)
    return _score(case, "reference_f1", NAMES[case.track].f1, threshold, required=False)


def baseline_gap(case: Case) -> Finding:
    """Whether the bare student is below the teacher; a pass advises to fine-tune.

    The one gate that asks about a weakness: it passes when the gap is proven.
    """
    what = f"teacher minus student on {NAMES[case.track].f1}"
    asked = Question(case, "baseline_gap", what, case.spec.baseline_gap, strict=True)
    found = case.difference("student")
    return _compare(asked, scaled(found, -1.0) if found else None)


def scale_up(case: Case) -> Finding:
    """The candidate's part of the teacher's headline F1; the teacher's score taken as given."""
    name = NAMES[case.track].f1
    asked = Question(case, "scale_up", f"{name} as a part of the teacher's", case.spec.scale_up)
    teacher = case.evaluation.arm(case.track, "teacher")
    score = teacher.metrics.get(name) if teacher else None
    found = case.difference()
    if found is None or score is None or score.value <= 0:
        return judge(asked, None)
    return _compare(asked, scaled(found, 1 / score.value, shift=1.0))


def backend_errors(case: Case) -> Finding:
    """Rows on which the candidate's server failed; a plain share, for it says what happened."""
    limit = case.spec.max_errors
    asked = Question(case, "backend_errors", "share of failed requests", limit, required=True)
    failed, rows = case.failed_requests(case.spec.candidate)
    if rows == 0:
        return judge(asked, None)
    share = failed / rows
    reason = f"{failed} of {rows} requests failed; at most {limit:.1%} may"
    return answer(asked, "pass" if share <= limit else "fail", share, rows, reason)


def domain_spread(case: Case) -> Finding:
    """Sample standard deviation of F1 over the domains with enough rows."""
    limit = case.spec.domain_spread
    asked = Question(case, "domain_spread", "F1 by domain", limit, case.spec.require_domains)
    judged, thin = case.split_domains()
    if len(judged) < 2:
        return too_few_domains(asked, thin)
    spread = statistics.stdev(domain.f1.value for domain in judged)
    reason = f"the F1 of {len(judged)} domains has a standard deviation of {spread:.3f}; "
    reason += f"it must be below {limit:.2f}"
    verdict: Verdict = "pass" if spread < limit else "fail"
    return domain_answer(asked, verdict, spread, reason, thin)


def domain_floor(case: Case) -> Finding:
    """The F1 of the weakest domain with enough rows."""
    limit = case.spec.domain_floor
    asked = Question(case, "domain_floor", "F1 by domain", limit, case.spec.require_domains)
    judged, thin = case.split_domains()
    if not judged:
        return too_few_domains(asked, thin)
    weakest = min(judged, key=lambda domain: (domain.f1.value, domain.domain))
    found = {verdict_on(domain.f1, limit) for domain in judged}
    worst_first: tuple[Verdict, ...] = ("fail", "inconclusive", "pass")
    verdict: Verdict = next(verdict for verdict in worst_first if verdict in found)
    reason = f"the weakest domain, {weakest.domain!r}, has an F1 of {show(weakest.f1)}; "
    reason += f"each must reach {limit:.2f}"
    return domain_answer(asked, verdict, weakest.f1.value, reason, thin)


GATES: tuple[Gate, ...] = (
    baseline_gap,
    not_worse_than_teacher,
    valid,
    exact,
    f1,
    precision,
    recall,
    name_match,
    backend_errors,
    domain_spread,
    domain_floor,
    reference_f1,
    beats_teacher,
    scale_up,
    no_loss_in_production,
)
"""In the order in which they are reported."""


def _against_teacher(case: Case, gate: str, threshold: float) -> Question:
    what = f"{case.spec.candidate} minus teacher on {NAMES[case.track].f1}"
    return Question(case, gate, what, threshold)


def _compare(asked: Question, difference: Metric | None) -> Finding:
    """Judge a difference from the teacher, unless its own server failed too often.

    A row that the teacher could not answer counts as a miss of the teacher's: with enough of them
    any candidate is better.
    """
    failed, rows = asked.case.failed_requests("teacher")
    if rows and failed / rows > asked.case.spec.max_errors:
        limit = f"at most {asked.case.spec.max_errors:.1%} may"
        reason = f"{failed} of {rows} requests to the teacher failed, {limit}: it is no measure"
        return answer(asked, "inconclusive", None, rows, reason)
    return judge(asked, difference)


def _score(
    case: Case, gate: str, name: str | None, threshold: float | None, *, required: bool = True
) -> Finding | None:
    if name is None or threshold is None:
        return None
    arm = case.candidate
    metric = arm.metrics.get(name) if arm else None
    return judge(Question(case, gate, name, threshold, required), metric)
