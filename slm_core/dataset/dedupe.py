"""One example per question: exact duplicates go, contradictions are settled by majority."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from slm_core.dataset.questions import answer_key
from slm_core.records import Drop, DropReason, Example


def dedupe(examples: Iterable[Example]) -> tuple[list[Example], list[Drop]]:
    """Return one example per track and prompt, and a drop for every other one.

    Where answers differ, the one given most often stays; on a tie the teacher contradicts
    itself and none stays. The outcome does not depend on the order of ``examples``.

    Only ``examples`` vote. The store hands an answer to one claim only, and once, however often
    it was captured: in a retraining, answers that differ are a tie.
    """
    questions: dict[tuple[str, str], list[Example]] = defaultdict(list)
    for example in examples:
        questions[example.track, example.prompt_digest()].append(example)
    kept: list[Example] = []
    drops: list[Drop] = []
    for asked in questions.values():
        best, dropped = _settle(asked)
        kept += best
        drops += dropped
    return sorted(kept, key=_order), drops


def _settle(asked: list[Example]) -> tuple[list[Example], list[Drop]]:
    """Return the example that answers one question, if any, and drops for the others."""
    answers: dict[str, list[Example]] = defaultdict(list)
    for example in sorted(asked, key=_order):
        answers[answer_key(example)].append(example)
    votes = sorted((len(given) for given in answers.values()), reverse=True)
    tie = len(votes) > 1 and votes[0] == votes[1]
    spread = "/".join(map(str, votes))
    kept: list[Example] = []
    drops: list[Drop] = []
    for given in answers.values():
        if tie or len(given) < votes[0]:
            detail = f"{len(votes)} answers, in {spread} of the calls read"
            drops += [_drop(example, DropReason.CONFLICT, detail) for example in given]
            continue
        kept.append(given[0])
        detail = f"of {given[0].source_call_id}"
        drops += [_drop(example, DropReason.DUPLICATE, detail) for example in given[1:]]
    return kept, drops


def _order(example: Example) -> tuple[str, str]:
    return example.id, example.source_call_id or ""


def _drop(example: Example, reason: DropReason, detail: str) -> Drop:
    return Drop(call_id=example.source_call_id or example.id, reason=reason, detail=detail)
