"""Writes captured calls as JSON lines in the Hermes function-calling format."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from slm_core.prompting.formats import dump_json, render_completion
from slm_core.prompting.hermes import hermes_conversation
from slm_core.prompting.parse import track_of
from slm_core.records import Call, DropReason, Message

FILE_NAME = "training.jsonl"


class TrainingFile(NamedTuple):
    """A written file; ``rows`` and the counts of ``left_out`` add up to ``calls``."""

    path: Path
    calls: int
    rows: int
    left_out: dict[str, int]
    """Reason to count."""


def write_hermes(
    calls: Iterable[Call], out_dir: Path, usable: Callable[[Call], str | None]
) -> TrainingFile:
    """Write one row per usable call to ``out_dir / "training.jsonl"``, whole or not at all.

    A row is that of ``hermes_conversation``: calls in the answers, native or in the tag of our
    ``toolcall`` track, are written as Hermes does.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    path = out_dir / FILE_NAME
    unfinished = path.with_suffix(".unfinished")
    rows, left_out = 0, Counter[str]()
    with unfinished.open("wb") as file:
        for call in calls:
            reason = usable(call)
            if reason is None:
                try:
                    file.write(_row(call).encode() + b"\n")
                    rows += 1
                except ValueError:
                    reason = DropReason.ENCODING.value
            if reason is not None:
                left_out[reason] += 1
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    return TrainingFile(path, rows + left_out.total(), rows, dict(left_out))


def _row(call: Call) -> str:
    track = track_of(call)
    answer = Message(role="assistant", content=call.response or "", tool_calls=call.tool_calls)
    if track == "structured" and len(call.tool_calls) == 1:  # the track's answer is JSON as text
        answer = Message(role="assistant", content=render_completion(track, call.tool_calls))
    return dump_json(hermes_conversation(call.id, call.messages, call.tools, answer, track))
