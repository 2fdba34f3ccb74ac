"""An evaluation whose process is killed in the middle goes on where it stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import slm_core
from slm_core.evaluation import Arm, EvaluationSpec, evaluate
from slm_core.prompting.formats import render_completion
from slm_core.records import Evaluation, Example, Message, ToolUse
from slm_core.testing.backends import ScriptedBackend

ROWS = 60


def make_case(number: int) -> Example:
    """Return a case that asks for its own number."""
    call = ToolUse(name="f", arguments={"x": number})
    return Example(
        id=f"case-{number}",
        track="structured",
        prompt=(Message(role="user", content=str(number)),),
        completion=render_completion("structured", [call]),
        calls=(call,),
        conversation_id=f"c{number}",
    )


def run(folder: Path, pause: float) -> tuple[Evaluation, ScriptedBackend]:
    """Evaluate one arm that takes ``pause`` seconds an answer."""
    cases = [make_case(i) for i in range(ROWS)]

    def answer(request):
        time.sleep(pause)
        return cases[int(request.prompt[0].content)].completion

    backend = ScriptedBackend(answer)
    evaluation = evaluate(
        cases, [Arm("adapter", lambda: backend, "a")], EvaluationSpec(), folder, test_set_id="t"
    )
    return evaluation, backend


def test_a_killed_evaluation_resumes_with_what_is_missing(tmp_path):
    outputs = tmp_path / "outputs-adapter.jsonl"
    root = str(Path(slm_core.__file__).parents[1])
    child = subprocess.Popen(
        [sys.executable, __file__, str(tmp_path)], env=os.environ | {"PYTHONPATH": root}
    )
    try:
        deadline = time.monotonic() + 60
        while not outputs.exists() or outputs.read_bytes().count(b"\n") < 5:
            assert child.poll() is None, "the child ended by itself"
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        child.kill()
    assert child.wait() == -signal.SIGKILL
    saved = outputs.read_bytes().count(b"\n")
    assert 5 <= saved < ROWS

    resumed, backend = run(tmp_path, pause=0)
    assert len(backend.asked) == ROWS - saved
    assert resumed.id == run(tmp_path / "whole", pause=0)[0].id


if __name__ == "__main__":
    run(Path(sys.argv[1]), pause=0.1)
