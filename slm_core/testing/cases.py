"""Scored outputs that look like real ones, and the file an evaluation writes them to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slm_core.prompting.formats import dump_json
from slm_core.records import ARMS, TRACKS, ArmName, CaseResult, FailureClass, RowScore, Track
from slm_core.testing.records import make_example
from slm_core.testing.scores import SPEED


def make_case(
    number: int, track: Track, arm: ArmName, output: str, failure: FailureClass, **changes: Any
) -> CaseResult:
    """Return one scored output; right when ``failure`` is NONE."""
    right = failure is FailureClass.NONE
    parsed = right or failure in (FailureClass.WRONG_VALUE, FailureClass.WRONG_TOOL)
    score = RowScore(
        parsed=parsed,
        name_match=parsed,
        exact=right,
        true_positives=2 if right else int(parsed),
        predicted=2 if parsed else 0,
        gold=2,
        failure=failure,
    )
    example = make_example(number, track)
    values: dict[str, Any] = {
        "case_id": example.id,
        "track": track,
        "arm": arm,
        "output": output,
        "gold": example.completion,
        "strict": score,
        "lenient": score,
        "cluster": example.conversation_id,
        "domain": example.domain,
        "seconds": SPEED[arm][0],
        "prompt_tokens": 240,
        "completion_tokens": 24,
        "cost_nanousd": 50_000,
    }
    return CaseResult(**(values | changes))


def make_cases(per_track: int = 6) -> list[CaseResult]:
    """Return outputs of all arms: habits of a chatty model, and an adapter mostly right."""
    cases: list[CaseResult] = []
    for track in TRACKS:
        for number in range(per_track):
            example = make_example(number, track)
            arguments = example.calls[0].arguments
            if track == "structured":
                fenced = dump_json({"function": "get_weather", "params": arguments})
                habit = (f"Sure!\n```json\n{fenced}\n```", FailureClass.FENCE)
            else:
                habit = (
                    f"<tool_call name=\"get_weather\" args='{dump_json(arguments)}' />",
                    FailureClass.SELF_CLOSING,
                )
            wrong = example.completion.replace("Town", "Tawn")
            good = (example.completion, FailureClass.NONE)
            slip = (wrong, FailureClass.WRONG_VALUE)
            outputs: dict[ArmName, tuple[str, FailureClass]] = {
                "teacher": slip if number % 5 == 4 else good,
                "student": habit,
                "student_cep": habit if number % 2 else good,
                "adapter": slip if number % 6 == 5 else good,
            }
            cases += [make_case(number, track, arm, *outputs[arm]) for arm in ARMS]
    return cases


def write_details(path: Path, cases: Sequence[CaseResult]) -> Path:
    """Write case results as an evaluation does: one JSON object a line."""
    lines = [json.dumps(case.model_dump(mode="json"), ensure_ascii=False) for case in cases]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path
