"""The answers of one arm on disk, appended as they come, so that an evaluation can resume.

One JSON line per answer. An answer is found again by what was asked: case, question, label of
the model and token limit. A last line that was only half written is cut off. Errors are not
saved: they are rows of this evaluation, and questions that the next one asks again. A request
that a backend refuses for good, such as a prompt too long for it, is such a row too, but no
sign that the backend is down.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from slm_core.backends.base import Backend, Completion, Request
from slm_core.errors import BackendError, BackendUnavailable
from slm_core.records import ArmName, Example, Record, content_id

log = logging.getLogger(__name__)


class Arm(NamedTuple):
    """One way to answer."""

    name: ArmName
    open: Callable[[], Backend]
    """Called once, and only when answers are missing; the backend is closed before the next
    arm's is opened."""
    label: str
    """Model, adapter and prefix. Shown in reports; answers of another label are not reused."""


class Output(Record):
    """One answer, or the error in its place."""

    asked: str
    case_id: str
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    cost_nanousd: int | None
    error: str | None = None
    permanent: bool = False
    """With ``error``: asking again would fail alike."""


def collect(
    arm: Arm,
    cases: Sequence[Example],
    path: Path,
    *,
    max_tokens: int,
    give_up_after: int,
    on_output: Callable[[], None],
) -> list[Output]:
    """Return the arm's output on each case, asking only for those that ``path`` lacks.

    Raises:
        BackendUnavailable: no case was answered, or ``give_up_after`` in a row were not;
            requests that were refused for good do not count.
        BackendError: the backend gave fewer answers than it was asked for.
    """
    keys = [_key(arm, case, max_tokens) for case in cases]
    saved = saved_outputs(path)
    missing = [(key, case) for key, case in zip(keys, cases, strict=True) if key not in saved]
    for _ in range(len(cases) - len(missing)):
        on_output()
    if missing:
        log.info("arm %s: %d of %d outputs to make", arm.name, len(missing), len(cases))
        with closing(_ask(arm, missing, path, max_tokens, give_up_after)) as outputs:
            for output in outputs:
                saved[output.asked] = output
                on_output()
    found = [saved[key] for key in keys]
    passing = [output for output in found if not output.permanent]
    if passing and all(output.error is not None for output in passing):
        raise _down(arm, len(passing), passing[-1].error)
    return found


def require_an_answer(arm: Arm, outputs: Sequence[Output]) -> None:
    """Check that the arm did not refuse every case for good.

    This is asked of a whole evaluation, not of a shard, whose few cases may all be too long.

    Raises:
        BackendError: it did; the message quotes the last refusal.
    """
    if outputs and all(output.permanent for output in outputs):
        raise BackendError(
            f"The backend of arm {arm.name} refused all {len(outputs)} requests, the last with: "
            f"{outputs[-1].error!r}. Asking again changes nothing. If the prompts are too long, "
            "shorten them, offer fewer tools or take a model with a longer context; else change "
            "what the server names, or take another model.",
            model=arm.label,
            refused=len(outputs),
        )


def _ask(
    arm: Arm, missing: list[tuple[str, Example]], path: Path, max_tokens: int, give_up_after: int
) -> Generator[Output]:
    answered = failed_in_a_row = 0
    backend = arm.open()
    try:
        with path.open("a", encoding="utf-8") as file:
            requests = [
                Request(case.prompt, case.tools, native_tools=case.track == "toolcall")
                for _, case in missing
            ]
            answers = backend.complete(requests, max_tokens=max_tokens)
            for (key, case), completion in zip(missing, answers, strict=False):
                output = _output(key, case.id, completion)
                answered += 1
                if output.error is None:
                    failed_in_a_row = 0
                    file.write(output.model_dump_json() + "\n")
                    file.flush()
                elif not output.permanent:
                    failed_in_a_row += 1
                    if failed_in_a_row == give_up_after:
                        raise _down(arm, failed_in_a_row, output.error)
                yield output
        if answered < len(missing):
            raise BackendError(
                f"The backend of arm {arm.name} gave {answered} answers to {len(missing)} "
                "questions; it must give one each.",
                model=arm.label,
            )
    finally:
        backend.close()


def _down(arm: Arm, failures: int, error: str | None) -> BackendUnavailable:
    return BackendUnavailable(
        f"The backend of arm {arm.name} failed {failures} times in a row. The answers so far "
        "are saved; run the evaluation again when it is back.",
        model=arm.label,
        last_error=error,
    )


def _output(key: str, case_id: str, completion: Completion) -> Output:
    return Output(
        asked=key,
        case_id=case_id,
        text=_storable(completion.text),
        finish_reason=completion.finish_reason,
        prompt_tokens=completion.prompt_tokens,
        completion_tokens=completion.completion_tokens,
        seconds=completion.seconds,
        cost_nanousd=completion.cost_nanousd,
        error=None if completion.error is None else _storable(completion.error),
        permanent=completion.error is not None and completion.permanent,
    )


def _storable(text: str) -> str:
    """Return ``text`` without lone surrogates, which UTF-8 files cannot hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _key(arm: Arm, case: Example, max_tokens: int) -> str:
    return content_id("ask", [case.id, case.track, case.prompt_digest(), arm.label, max_tokens])


def saved_outputs(path: Path) -> dict[str, Output]:
    """Return the answers saved in ``path``, after cutting off a half-written last line."""
    if not path.exists():
        return {}
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        log.warning("%s: cut off a half-written answer of %d bytes", path, len(data) - len(whole))
        with path.open("r+b") as file:
            file.truncate(len(whole))
    outputs: dict[str, Output] = {}
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            output = Output.model_validate_json(line)
        except ValidationError:
            log.warning("%s:%d is not an answer; it will be asked again", path, number)
            continue
        outputs[output.asked] = output
    return outputs
