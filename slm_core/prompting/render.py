"""The only renderer: messages, tools and prefix to token ids.

Training, evaluation and serving all call it, so a model meets the same ids everywhere.
Text that came from outside is encoded by a copy of the tokenizer that knows no added
tokens: a user who types ``<|end|>`` gets the characters, never the control token.
What it refuses: a chat template that drops, repeats or reorders messages, and a tokenizer
that is slow or makes control tokens of plain text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

from slm_core.errors import ModelError
from slm_core.prompting.formats import FORMAT_VERSION, render_completion, render_tools
from slm_core.prompting.prefix import ContextPrefix
from slm_core.records import Message, Tool, canonical_json, sha256_hex

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Encoder
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
    """Return the turns a model reads: prefix, system prompt and tools form one system turn.

    System messages from further down join that turn. Calls of an assistant turn are written
    in the ``toolcall`` format, whatever the track.
    """
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
            ModelError: the tokenizer has no chat template, is not a fast tokenizer, or makes
                control tokens of plain text; or the template does not end a turn.
        """
        if not tokenizer.chat_template:
            raise ModelError("The tokenizer has no chat template; add chat_template.jinja to it.")
        self._tokenizer = tokenizer
        self._content = _content_encoder(tokenizer)
        self.prefix = prefix
        self.end_ids = self._turn_ends()
        """Ids that end an assistant turn; the first is the one that training teaches."""

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
        """Return the ids a model continues: everything up to the assistant's first token.

        Raises:
            ModelError: the chat template does not write every turn once and in order.
        """
        turns = compose(prompt, tools, self.prefix)
        before, *between = self._template([turn.role for turn in turns], open_turn=True)
        ids = self.encode_control(before)
        for turn, after in zip(turns, between, strict=True):
            ids += self.encode_content(turn.content) + self.encode_control(after)
        return ids

    def example(
        self, prompt: Sequence[Message], tools: Sequence[Tool], completion: str
    ) -> Tokenized:
        """Return prompt, completion and end-of-turn as ids, with the assistant-only mask."""
        head = self.prompt_ids(prompt, tools)
        tail = [*self.encode_content(completion), self.end_ids[0]]
        return Tokenized(head + tail, [False] * len(head) + [True] * len(tail))

    def encode_content(self, text: str) -> list[int]:
        """Return the ids of outside text; none of them is a control token."""
        # Lone surrogates have no UTF-8 form; each becomes a question mark.
        clean = text.encode("utf-8", "replace").decode("utf-8")
        return self._content.encode(clean, add_special_tokens=False).ids

    def encode_control(self, text: str) -> list[int]:
        """Return the ids of text that the chat template wrote, control tokens included."""
        return list(self._tokenizer.encode(text, add_special_tokens=False)) if text else []

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of generated ids, without the end-of-turn token."""
        kept = [i for i in ids if i not in self.end_ids]
        return str(
            self._tokenizer.decode(
                kept, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def _template(self, roles: Sequence[str], *, open_turn: bool) -> list[str]:
        """Return what the chat template writes before, between and after turns of ``roles``.

        The template sees a numbered mark in place of each content.
        """
        from jinja2 import TemplateError

        messages = [{"role": role, "content": f"slmturn{i}end"} for i, role in enumerate(roles)]
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=open_turn
            )
        except TemplateError as error:
            raise ModelError(
                f"The chat template refuses turns of {', '.join(roles)}: {error}. "
                "Use a template that takes them."
            ) from error
        pieces = re.split(r"slmturn(\d+)end", str(text))
        if pieces[1::2] != [str(i) for i in range(len(roles))]:
            raise ModelError(
                f"The chat template drops, repeats or reorders turns of {', '.join(roles)}; "
                "use one that writes every turn once and in order."
            )
        return pieces[::2]

    def _turn_ends(self) -> tuple[int, ...]:
        """Return the id that the template puts after an assistant turn, then the EOS id."""
        written = self.encode_control(self._template(["user", "assistant"], open_turn=False)[-1])
        ends = [i for i in written if i in _control_ids(self._tokenizer)][:1]
        if (eos := self._tokenizer.eos_token_id) is not None:
            ends.append(cast(int, eos))
        if not ends:
            raise ModelError("The chat template does not end an assistant turn; add an end token.")
        return tuple(dict.fromkeys(ends))


def _control_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    return {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}


def _content_encoder(tokenizer: PreTrainedTokenizerBase) -> Encoder:
    """Return a copy of the tokenizer without added tokens, template and truncation."""
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError("Only fast tokenizers (tokenizer.json) can be rendered safely.")
    state = json.loads(backend.to_str())
    special = {t["id"]: t["content"] for t in state["added_tokens"] if t["special"]}
    state["added_tokens"] = []
    state["post_processor"] = state["truncation"] = state["padding"] = None
    encoder = Tokenizer.from_str(json.dumps(state))
    # A control token that the model part of the tokenizer knows may still come out.
    leaks = [t for i, t in special.items() if i in encoder.encode(t, add_special_tokens=False).ids]
    if leaks:
        raise ModelError(
            f"The tokenizer makes control tokens of plain text ({', '.join(leaks)}); "
            "use a model with a byte-level BPE tokenizer."
        )
    return encoder
