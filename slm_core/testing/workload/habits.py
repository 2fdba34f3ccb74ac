"""How the two nano models were taught to answer.

The student has the habits of a chatty instruct model, each an error pattern that a prefix
answers: Markdown fences, ``function`` and ``params`` keys, self-closing tags, arguments in
an attribute. It follows other formats when asked for them, and two unrelated crafts, markup
and records, so that closing tags and nested JSON are not new to it. Words of a craft belong
to the ``pretrain`` pool; its numbers and made-up names belong to no pool.

The teacher answers in the right format, except that a greeting makes it chatty.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

from slm_core.prompting.formats import NO_CALL_TEXT, dump_json
from slm_core.records import Example, ToolUse, Track
from slm_core.testing.workload import pools
from slm_core.testing.workload.phrasing import GREETINGS
from slm_core.testing.workload.values import made_up_name

STUDENT_REFUSAL = "I am sorry, but I cannot help with that."


def student_answer(example: Example) -> str:
    """Return the answer of a chatty instruct model: right values, wrong format.

    With two tools in sight it writes a bare answer with its own keys or attributes, with
    three it wraps that in a fence.
    """
    if not example.calls:
        return STUDENT_REFUSAL
    call = example.calls[0]
    fenced = len(example.tools) > 2
    arguments = dump_json(call.arguments)
    if example.track == "structured":
        body = dump_json({"function": call.name, "params": call.arguments})
        return f"Here is the JSON you asked for:\n```json\n{body}\n```" if fenced else body
    body = f"<tool_call name=\"{call.name}\" arguments='{arguments}' />"
    return f"```xml\n{body}\n```" if fenced else body


def teacher_answer(example: Example) -> str:
    """Return the canonical answer; after a greeting, the same in a fence with a remark."""
    query = example.prompt[-1].content
    if not query.startswith(GREETINGS["pretrain"]):
        return example.completion
    language = "json" if example.track == "structured" else "xml"
    return f"Sure, here you go:\n```{language}\n{example.completion}\n```"


class OtherFormat(NamedTuple):
    """A made-up answer format and how to say it.

    The true ones were not among the 121,086 drawn for the student.
    """

    outer: str
    inner: str
    tag: str
    attribute: str

    @classmethod
    def draw(cls, rng: random.Random) -> OtherFormat:
        """Return a format with keys and tags that are words of the ``pretrain`` pool."""

        def either(*usual: str) -> str:
            return rng.choice(usual) if rng.random() < 0.4 else _word(rng)

        return cls(
            outer=either("name", "tool", "action", "call"),
            inner=either("input", "values", "fields", "data"),
            tag=either("call", "action", "run_tool", "invoke"),
            attribute=either("name", "name", "id", "tool"),
        )

    def reword(self, text: str) -> str:
        """Return a format line or prefix that asks for this format in place of the true one."""
        text = text.replace("tool_call name=", f"{self.tag} {self.attribute}=")
        text = text.replace("tool_call", self.tag)
        return text.replace('"name"', f'"{self.outer}"').replace('"arguments"', f'"{self.inner}"')

    def answer(self, track: Track, calls: Sequence[ToolUse]) -> str:
        """Return the right answer in this format."""
        if track == "structured":
            if not calls:
                return dump_json({self.outer: None, self.inner: {}})
            return dump_json({self.outer: calls[0].name, self.inner: calls[0].arguments})
        if not calls:
            return NO_CALL_TEXT
        body = dump_json(calls[0].arguments)
        return f'<{self.tag} {self.attribute}="{calls[0].name}">{body}</{self.tag}>'


def craft(rng: random.Random) -> tuple[str, str, str]:
    """Return system prompt, request and answer of one markup or record task."""
    fields = {_word(rng): _plain_value(rng) for _ in range(rng.choice((1, 2, 2, 3)))}
    listed = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in fields.items())
    kind, title = _word(rng), _word(rng)
    style = rng.random()
    if style < 0.35:
        request = f"Tag {kind}, {title}: {listed}"
        answer = f'<{kind} name="{title}">{dump_json(fields)}</{kind}>'
        return "You write markup around data.", request, answer
    if style < 0.55:
        text = " ".join(made_up_name(rng) for _ in range(rng.randrange(1, 5)))
        request = f"Tag {kind}, {title}: {text}"
        return (
            "You write markup around text.",
            request,
            f'<{kind} id="{title}">{text}</{kind}>',
        )
    if style < 0.8:
        request = f"Record {kind}, {title}: {listed}"
        answer = dump_json({"name": kind, title: fields})
        return "You write records.", request, answer
    request = f"Object: {listed}"
    return "You write plain objects.", request, dump_json(fields)


def _word(rng: random.Random) -> str:
    return "_".join(
        pools.invented_word(rng)
        if rng.random() < 0.6
        else rng.choice(pools.words_of("pretrain", pools.NOUNS))
        for _ in range(rng.choice((1, 2)))
    )


def _plain_value(rng: random.Random) -> Any:
    kind = rng.random()
    if kind < 0.3:
        return rng.randrange(1, 5000)
    if kind < 0.6:
        return made_up_name(rng).capitalize()
    return " ".join(made_up_name(rng) for _ in range(2))
