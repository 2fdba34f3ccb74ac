"""Runs arms over a frozen test set, scores every output, and compares the arms.

An interrupted evaluation resumes in the same folder with exactly what is missing. Refuses
cases whose gold answer does not pass its own scorer. The same outputs give the same numbers
and the same id; latency and time of day are not part of either.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from slm_core.errors import EvaluationError
from slm_core.evaluation.outputs import Arm, Output, collect, require_an_answer
from slm_core.evaluation.scoring import check_gold, score_row, score_unparsed
from slm_core.evaluation.shards import outputs_file
from slm_core.evaluation.spec import EvaluationSpec
from slm_core.records import (
    ArmName,
    CaseResult,
    Evaluation,
    Example,
    FailureClass,
    canonical_json,
    content_id,
    sha256_hex,
)
from slm_core.system.durable import replace_file

log = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]


def evaluate(
    cases: Sequence[Example],
    arms: Sequence[Arm],
    spec: EvaluationSpec,
    out_dir: Path,
    *,
    test_set_id: str,
    adapter_id: str | None = None,
    on_progress: Progress | None = None,
) -> Evaluation:
    """Ask every arm every case, and return all scores.

    Writes to ``out_dir``: ``outputs-{arm}.jsonl`` while it runs, then ``details.jsonl`` (one
    ``CaseResult`` per line) and ``evaluation.json``. ``on_progress`` gets answers made,
    answers wanted, and the arm.

    Raises:
        EvaluationError: no cases or arms, repeated ids, or gold that fails its own scorer.
        BackendUnavailable: a backend is down; call again to go on.
        BackendError: a backend refused every case; to ask again would change nothing.
    """
    _check(cases, arms)
    out_dir.mkdir(parents=True, exist_ok=True)
    results: dict[ArmName, list[CaseResult]] = {}
    done, total = 0, len(cases) * len(arms)
    for arm in arms:

        def count(name: str = arm.name) -> None:
            nonlocal done
            done += 1
            if on_progress:
                on_progress(done, total, name)

        outputs = collect(
            arm,
            cases,
            outputs_file(out_dir, arm.name),
            max_tokens=spec.max_tokens,
            give_up_after=spec.give_up_after,
            on_output=count,
        )
        require_an_answer(arm, outputs)
        results[arm.name] = [
            _case_result(arm.name, case, output)
            for case, output in zip(cases, outputs, strict=True)
        ]
    # Loads numpy, which whoever only imports this stage need not wait for.
    from slm_core.evaluation.summary import summarise

    summary = summarise({arm.name: arm.label for arm in arms}, results, spec)
    details = out_dir / "details.jsonl"
    rows = (result for arm in arms for result in results[arm.name])
    details_sha256 = _write(details, "".join(row.model_dump_json() + "\n" for row in rows))
    spec_digest = content_id("spec", spec)
    content = {
        "test_set": test_set_id,
        "adapter": adapter_id,
        "spec": spec_digest,
        "cases": sha256_hex("".join(canonical_json(case) for case in cases)),
        "outputs": [[arm.arm, arm.track, arm.model, arm.rows_sha256] for arm in summary.arms],
    }
    evaluation = Evaluation(
        id=content_id("evaluation", content),
        test_set_id=test_set_id,
        adapter_id=adapter_id,
        arms=summary.arms,
        paired=summary.paired,
        details_path=str(details),
        details_sha256=details_sha256,
        spec_digest=spec_digest,
        seed=spec.seed,
    )
    _write(out_dir / "evaluation.json", evaluation.model_dump_json(indent=2) + "\n")
    log.info("evaluation %s: %d cases, %d arms", evaluation.id, len(cases), len(arms))
    return evaluation


def read_details(path: Path) -> list[CaseResult]:
    """Return the rows of a ``details.jsonl``."""
    with path.open(encoding="utf-8") as file:
        return [CaseResult.model_validate_json(line) for line in file]


def _check(cases: Sequence[Example], arms: Sequence[Arm]) -> None:
    if not cases or not arms:
        raise EvaluationError(
            f"An evaluation needs cases and arms; got {len(cases)} cases and {len(arms)} arms."
        )
    for what, names in (("case", [c.id for c in cases]), ("arm", [a.name for a in arms])):
        repeated = [name for name, times in Counter(names).items() if times > 1]
        if repeated:
            raise EvaluationError(
                f"{len(repeated)} {what} ids occur more than once; each must be its own.",
                repeated=repeated[:10],
            )
    check_gold(cases)


def _case_result(arm: ArmName, case: Example, output: Output) -> CaseResult:
    if output.error is None:
        strict, lenient = score_row(case, output.text, output.finish_reason)
    else:
        strict = lenient = score_unparsed(case, FailureClass.ERROR)
    return CaseResult(
        case_id=case.id,
        track=case.track,
        arm=arm,
        output=output.text,
        gold=case.completion,
        strict=strict,
        lenient=lenient,
        cluster=case.conversation_id,
        domain=case.domain,
        seconds=output.seconds,
        prompt_tokens=output.prompt_tokens,
        completion_tokens=output.completion_tokens,
        cost_nanousd=output.cost_nanousd,
        error=output.error,
    )


def _write(path: Path, text: str) -> str:
    """Write ``text`` to ``path`` in one step and return its SHA-256."""
    replace_file(path, text.encode())
    return sha256_hex(text)
