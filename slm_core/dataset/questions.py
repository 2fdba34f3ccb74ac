"""When two questions are the same: the one definition that de-duplication, the split and
the leak proof share."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from slm_core.dataset.spec import NearDuplicates
from slm_core.prompting.formats import render_completion
from slm_core.records import Example, canonical_json

_SPACE = re.compile(r"\s+")


def same_question_keys(example: Example, near_duplicates: NearDuplicates) -> Iterator[str]:
    """Yield the keys of an example; two that share a key may not be on both sides of a split."""
    yield f"conversation {example.conversation_id}"
    yield f"prompt {example.prompt_digest()}"
    if near_duplicates == "together":
        yield f"question {normalised_question(example)}"


def normalised_question(example: Example) -> str:
    """Return the turns of the question without case, spacing and closing punctuation.

    System turns and tools are left out, so that one request put to two agents is one
    question; a prompt of system turns alone is compared whole.
    """
    turns = [m for m in example.prompt if m.role != "system"] or list(example.prompt)
    lines = []
    for turn in turns:
        calls = render_completion("toolcall", turn.tool_calls) if turn.tool_calls else ""
        text = unicodedata.normalize("NFKC", f"{turn.content} {calls}").casefold()
        lines.append(f"{turn.role}: {_SPACE.sub(' ', text).strip(' .!?')}")
    return "\n".join(lines)


def answer_key(example: Example) -> str:
    """Return a key that is equal for equal answers: the order of calls and keys is not read."""
    return "\n".join(sorted(canonical_json(call) for call in example.calls))
