"""Context engineering prefixes (CEP): format rules put ahead of the system prompt.

Four variants, each content-addressed and each rule tied to the error pattern it answers.
A prefix is applied by ``render.py`` alone, in training, evaluation and serving alike.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from slm_core.records import Record, content_id

Variant = Literal["universal", "compact", "structured", "toolcall"]


class ErrorPattern(StrEnum):
    """A habit of instruct models that makes a right answer unreadable to a strict parser."""

    MARKDOWN_WRAPPER = "Markdown wrapper around the answer"
    SELF_CLOSING_TAG = "self-closing tag"
    PARAMETER_NAMES = "other key or parameter names"
    ARGUMENTS_ATTRIBUTE = "arguments= attribute"


class Rule(Record):
    """One sentence of a prefix and the error pattern it answers."""

    text: str
    addresses: ErrorPattern | None = None
    """None for sentences that set the scene."""


class ContextPrefix(Record):
    """The prefix of one variant."""

    variant: Variant
    rules: tuple[Rule, ...]

    @property
    def text(self) -> str:
        """The prefix as the model reads it."""
        return "\n".join(rule.text for rule in self.rules)

    @property
    def addresses(self) -> tuple[ErrorPattern, ...]:
        """The error patterns that some rule answers, in order."""
        found = [rule.addresses for rule in self.rules if rule.addresses is not None]
        return tuple(dict.fromkeys(found))

    @property
    def id(self) -> str:
        """Content id of the text, for example ``cep-0123456789abcdef``."""
        return content_id("cep", self.text)


_WRAPPER = ErrorPattern.MARKDOWN_WRAPPER
_CLOSING = ErrorPattern.SELF_CLOSING_TAG
_NAMES = ErrorPattern.PARAMETER_NAMES
_ATTRIBUTE = ErrorPattern.ARGUMENTS_ATTRIBUTE

_UNIVERSAL = ContextPrefix(
    variant="universal",
    rules=(
        Rule(text="# Output rules"),
        Rule(text="A program reads your answer. Follow these rules exactly."),
        Rule(
            text="1. Write the answer alone: no Markdown fences, no greeting, no explanation.",
            addresses=_WRAPPER,
        ),
        Rule(
            text="2. When a JSON object is asked for, write one raw object with exactly two keys, "
            '"name" and "arguments": {"name": "TOOL", "arguments": {...}}. '
            'Never "function", "params" or "parameters".',
            addresses=_NAMES,
        ),
        Rule(
            text="3. When a tool call is asked for, write an opening tag, the arguments as JSON, "
            'and a closing tag: <tool_call name="TOOL">{...}</tool_call>. '
            "Never a self-closing tag.",
            addresses=_CLOSING,
        ),
        Rule(
            text="4. The arguments stand between the tags, never in an attribute such as "
            "arguments=\"...\" or args='...'.",
            addresses=_ATTRIBUTE,
        ),
        Rule(
            text="5. Use the tool and parameter names of the schema letter for letter, and copy "
            "values from the request.",
            addresses=_NAMES,
        ),
        Rule(text="6. Choose only from the tools given."),
    ),
)

_COMPACT = ContextPrefix(
    variant="compact",
    rules=(
        Rule(text="Answer for a program: no fences, no prose.", addresses=_WRAPPER),
        Rule(text='JSON: {"name": "TOOL", "arguments": {...}}.', addresses=_NAMES),
        Rule(
            text='Tool call: <tool_call name="TOOL">{...}</tool_call>, never self-closing,',
            addresses=_CLOSING,
        ),
        Rule(text="never arguments in an attribute.", addresses=_ATTRIBUTE),
    ),
)

_STRUCTURED = ContextPrefix(
    variant="structured",
    rules=(
        Rule(text="# Output rules"),
        Rule(text="A program reads your answer with a JSON parser."),
        Rule(
            text="1. Write one raw JSON object: the first character is { and the last is }. "
            "No Markdown fences, no words around it.",
            addresses=_WRAPPER,
        ),
        Rule(
            text='2. It has exactly two keys: {"name": "TOOL", "arguments": {...}}. '
            'Never "function", "params" or "parameters".',
            addresses=_NAMES,
        ),
        Rule(
            text="3. Parameter names are those of the schema, letter for letter; numbers and "
            "true or false stand without quotes.",
            addresses=_NAMES,
        ),
    ),
)

_TOOLCALL = ContextPrefix(
    variant="toolcall",
    rules=(
        Rule(text="# Output rules"),
        Rule(text="A program reads your answer and runs the tool."),
        Rule(
            text="1. Write the tool call alone, without Markdown fences or words around it.",
            addresses=_WRAPPER,
        ),
        Rule(
            text='2. Its form is <tool_call name="TOOL">{...}</tool_call>: an opening tag, the '
            "arguments as one JSON object, a closing tag. Never a self-closing tag.",
            addresses=_CLOSING,
        ),
        Rule(
            text="3. The only attribute is name. Never arguments=\"...\" or args='...'.",
            addresses=_ATTRIBUTE,
        ),
        Rule(
            text="4. Parameter names are those of the schema, letter for letter.",
            addresses=_NAMES,
        ),
    ),
)

PREFIXES: dict[Variant, ContextPrefix] = {
    prefix.variant: prefix for prefix in (_UNIVERSAL, _COMPACT, _STRUCTURED, _TOOLCALL)
}


def get_prefix(variant: Variant | None) -> ContextPrefix | None:
    """Return the prefix of ``variant``; None stays None (no prefix)."""
    return None if variant is None else PREFIXES[variant]
