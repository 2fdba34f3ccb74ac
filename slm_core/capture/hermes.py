"""Writes calls as Hermes-format JSONL (the ShareGPT form with a ``tools`` column)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from slm_core.prompting.formats import dump_json, render_completion
from slm_core.records import Call, DropReason, Message

FILE_NAME = "training.jsonl"
_SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt", "tool": "tool"}


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

    A row is ``{"id", "conversations": [{"from", "value"}], "tools"}``: speakers are ``system``,
    ``human``, ``gpt`` and ``tool``, and ``tools`` is a JSON list as text. Native tool calls are
    written in the ``toolcall`` format.
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
    answer = Message(role="assistant", content=call.response or "", tool_calls=call.tool_calls)
    return dump_json(
        {
            "id": call.id,
            "conversations": [
                {"from": _SPEAKERS[turn.role], "value": _text(turn)}
                for turn in (*call.messages, answer)
            ],
            "tools": dump_json([tool.model_dump(mode="json") for tool in call.tools]),
        }
    )


def _text(turn: Message) -> str:
    calls = render_completion("toolcall", turn.tool_calls) if turn.tool_calls else ""
    return "\n".join(part for part in (turn.content, calls) if part)
