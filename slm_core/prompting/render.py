"""The only renderer: messages, tools and prefix to token ids.

Training, evaluation and serving all call it, so a model meets the same ids everywhere.
Text that came from outside is encoded by a copy of the tokenizer that knows no added
tokens: a user who types ``<|end|>`` gets the characters, never the control token.
What it refuses: a chat template that drops, repeats or rewrites a message.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from slm_core.errors import ModelError
from slm_core.prompting.formats import FORMAT_VERSION, render_completion, render_tools
from slm_core.prompting.prefix import ContextPrefix
from slm_core.records import Message, Tool, canonical_json, sha256_hex

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RENDER_VERSION = 1
"""Part of the prompt hash: raise it with any change of the layout made here."""


class Tokenized(NamedTuple):
    """One training row."""

    ids: list[int]
    """Prompt and completion, closed by the end-of-turn token."""
    supervised: list[bool]
    """Same length: True for completion tokens and the end-of-turn token only."""


def compose(
    prompt: Sequence[Message], tools: Sequence[Tool] = (), prefix: ContextPrefix | None = None
) -> list[Message]:
    """Return the turns a model reads: prefix, system prompt and tools form one system turn."""
    system = [m.content for m in prompt if m.role == "system"]
    parts = [prefix.text if prefix else "", *system, render_tools(tools)]
    head = "\n\n".join(part for part in parts if part)
    turns = [Message(role="system", content=head)] if head else []
    for message in prompt:
        if message.role == "system":
            continue
        if message.tool_calls:
            calls = render_completion("toolcall", message.tool_calls)
            content = f"{message.content}\n{calls}" if message.content else calls
            message = Message(role=message.role, content=content)
        turns.append(message)
    return turns


class Renderer:
    """Turns prompts into token ids for one tokenizer and one prefix."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prefix: ContextPrefix | None = None
    ) -> None:
        """Prepare the content encoder.

        Raises:
            ModelError: the tokenizer has no chat template, or is not a fast tokenizer.
        """
        if not tokenizer.chat_template:
            raise ModelError("The tokenizer has no chat template; add chat_template.jinja to it.")
        self._tokenizer = tokenizer
        self._content = _content_encoder(tokenizer)
        self.prefix = prefix
        self._open, self.end_ids = self._learn_turn_end()

    @property
    def prompt_hash(self) -> str:
        """Hash of chat template, tool format, layout and prefix; travels with an adapter."""
        return sha256_hex(
            canonical_json(
                {
                    "template": self._tokenizer.chat_template,
                    "format": FORMAT_VERSION,
                    "render": RENDER_VERSION,
                    "prefix": self.prefix.text if self.prefix else None,
                }
            )
        )

    def prompt_ids(self, prompt: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
        """Return the ids a model continues: everything up to the assistant's first token."""
        return self._encode(compose(prompt, tools, self.prefix), open_turn=True)

    def example(self, prompt: Sequence[Message], tools: Sequence[Tool], completion: str) -> Tokenized:
        """Return prompt, completion and end-of-turn as ids, with the assistant-only mask."""
        head = self.prompt_ids(prompt, tools)
        tail = [*self.encode_content(completion), self.end_ids[0]]
        return Tokenized(head + tail, [False] * len(head) + [True] * len(tail))

    def encode_content(self, text: str) -> list[int]:
        """Return the ids of outside text; none of them is a control token."""
        # Lone surrogates cannot be UTF-8; show them as the replacement character.
        clean = text.encode("utf-8", "replace").decode("utf-8")
        return self._content.encode(clean, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of generated ids, without the end-of-turn token."""
        kept = [i for i in ids if i not in self.end_ids]
        return str(self._tokenizer.decode(kept, skip_special_tokens=False))

    def _encode(self, turns: Sequence[Message], *, open_turn: bool) -> list[int]:
        # Unguessable stand-ins: no message can contain the mark of another.
        marks = [f"slm{secrets.token_hex(12)}" for _ in turns]
        text = self._template(
            [{"role": t.role, "content": m} for t, m in zip(turns, marks, strict=True)], open_turn
        )
        ids: list[int] = []
        rest = text
        for turn, mark in zip(turns, marks, strict=True):
            before, found, rest = rest.partition(mark)
            if not found:
                raise ModelError(
                    f"The chat template drops or reorders a {turn.role} message; "
                    "use a template that keeps every turn in order."
                )
            ids += self._encode_control(before) + self.encode_content(turn.content)
        if any(mark in rest for mark in marks):
            raise ModelError("The chat template repeats a message; use one that does not.")
        return ids + self._encode_control(rest)

    def _encode_control(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def _template(self, messages: list[dict[str, str]], open_turn: bool) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=open_turn
            )
        )

    def _learn_turn_end(self) -> tuple[str, tuple[int, ...]]:
        """Return what opens an assistant turn, and the ids that end one."""
        asked = [{"role": "user", "content": "q"}]
        opened = self._template(asked, True)
        mark = f"slm{secrets.token_hex(12)}"
        closed = self._template([*asked, {"role": "assistant", "content": mark}], False)
        after = self._encode_control(closed.partition(mark)[2])
        eos = self._tokenizer.eos_token_id
        ends = ([after[0]] if after else []) + ([eos] if eos is not None else [])
        if not ends:
            raise ModelError("The chat template does not end an assistant turn; add an end token.")
        return opened, tuple(dict.fromkeys(ends))


def _content_encoder(tokenizer: PreTrainedTokenizerBase) -> Any:
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError("Only fast tokenizers (tokenizer.json) can be rendered safely.")
    state = json.loads(backend.to_str())
    state["added_tokens"] = []
    state["post_processor"] = None
    state["truncation"] = state["padding"] = None
    return Tokenizer.from_str(json.dumps(state))
