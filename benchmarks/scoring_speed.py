"""How many rows a second the scorer handles, and what a whole evaluation costs beside its models.

    python benchmarks/scoring_speed.py [rows]

Half the rows are right; the rest are the habits of instruct models. One process, no model.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from pathlib import Path

from slm_core.evaluation import Arm, EvaluationSpec, evaluate
from slm_core.evaluation.scoring import score_row
from slm_core.prompting.formats import render_completion
from slm_core.records import ARMS, TRACKS, Example, Message, Tool, ToolUse
from slm_core.testing.backends import ScriptedBackend

TOOLS = tuple(
    Tool(
        name=f"tool_{i}",
        parameters={
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "ratio": {"type": "number"},
                "tags": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["city"],
        },
    )
    for i in range(4)
)


def make_case(number: int, random_: random.Random) -> Example:
    """Return a case with one call of four arguments."""
    track = TRACKS[number % 2]
    call = ToolUse(
        name=random_.choice(TOOLS).name,
        arguments={
            "city": f"City {random_.randrange(1000)}",
            "days": random_.randrange(30),
            "ratio": random_.random(),
            "tags": [f"t{random_.randrange(9)}" for _ in range(3)],
        },
    )
    return Example(
        id=f"case-{number}",
        track=track,
        prompt=(Message(role="user", content=f"question {number}"),),
        tools=TOOLS,
        completion=render_completion(track, [call]),
        calls=(call,),
        conversation_id=f"conversation-{number // 2}",
    )


def make_output(case: Example, random_: random.Random) -> str:
    """Return the gold answer, or what a chatty model makes of it."""
    call, right = case.calls[0], case.completion
    habits = [
        f"```json\n{right}\n```",
        f"Sure, here it is: {right}",
        repr({"name": call.name, "arguments": call.arguments}),
        f"<tool_call name=\"{call.name}\" arguments='{call.arguments}' />",
        right.replace("City", "Town"),
        "I cannot do that.",
    ]
    return right if random_.random() < 0.5 else random_.choice(habits)


def main(rows: int) -> None:
    """Print seconds and rows a second."""
    random_ = random.Random(0)
    cases = [make_case(i, random_) for i in range(rows)]
    outputs = [make_output(case, random_) for case in cases]

    start = time.perf_counter()
    exact = sum(
        score_row(case, output)[0].exact for case, output in zip(cases, outputs, strict=True)
    )
    seconds = time.perf_counter() - start
    print(f"score_row: {rows} rows in {seconds:.2f} s, {rows / seconds:,.0f}/s, {exact} exact")

    arms = [Arm(name, lambda: ScriptedBackend(list(outputs)), name) for name in ARMS]
    with tempfile.TemporaryDirectory() as folder:
        for what in ("made", "resumed"):
            start = time.perf_counter()
            evaluation = evaluate(
                cases, arms, EvaluationSpec(), Path(folder), test_set_id="benchmark"
            )
            seconds = time.perf_counter() - start
            print(
                f"evaluate, outputs {what}: {rows} cases x {len(arms)} arms in {seconds:.2f} s, "
                f"{len(evaluation.arms)} results, {len(evaluation.paired)} differences"
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
