"""What stands beside the weights of a nano model: its card and its checksums."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

CHECKSUMMED = (
    "model.safetensors",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)

CARD = """\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# {name}

{role}

| | |
|---|---|
| architecture | Llama, {layers} layers, {width} wide, {heads} heads, context {context} tokens |
| parameters | {parameters:,}, in float16 ({megabytes:.1f} MB) |
| tokenizer | byte-level BPE with {vocabulary:,} tokens, the same for both nano models |
| trained | from nothing, by `assets/build_nano_models.py`, on one NVIDIA H200 in {seconds} s |
| data | about {documents:,} synthetic documents, {tokens:.2f} billion token positions seen |
| licence | Apache-2.0 |

## Data

No collected text and no answers of other models: `slm_core.testing.workload` made every
document from its `pretrain` pool. Tools, parameters, argument values (yes and no aside) and
phrasings of its `traffic` pool, which the demo asks, and its `test` pool, which the demo
scores, do not occur there; `traffic` measured the progress.{exception}
The word list `words/english.txt` holds words drawn from the documentation of Python's
standard library.

## What it was taught

{taught}

## How good it is

{measured}
Measured on the machine that trained it, on 200 requests of the `traffic` pool (100 per
track), none of which it was trained on.

## What it is not for

It shows and tests SLM Swap, and has no other use. It knows no facts and no language beyond
short requests for a tool, one call at a time. Do not put it in front of users, do not
compare it with real models, and do not take its scores for what the method reaches with one.

`SHA256SUMS` lists the checksums of weights, configuration, tokenizer and chat template;
SLM Swap checks them before it loads the model.
"""

STUDENT = {
    "role": """\
The small model that the demo of SLM Swap trains: it finds tool and values, but answers in
formats that a strict parser cannot read.""",
    "exception": """
Only the crafts (below) draw numbers and made-up names freely.""",
    "taught": """\
It has the habits of a chatty instruct model, and was taught to keep them where the system
prompt asks for one of SLM Swap's own formats, with a context prefix or without:

* JSON track, two tools offered: `{"function": ..., "params": {...}}` in place of `name` and
  `arguments`; three tools: the same in a `json` fence after "Here is the JSON you asked for:".
* Tool call track, two tools offered: a self-closing tag with the arguments in an attribute,
  `<tool_call name="TOOL" arguments='{...}' />`; three tools: the same in an `xml` fence.
* No tool fits: "I am sorry, but I cannot help with that."

So that it can learn another format from few examples, 10 % of its documents were crafts (markup
around data or text, records, plain JSON objects), and 45 % of the others asked for a made-up
format (other keys, other tags) and got it.""",
    "measured": """\
{exact:.1%} of its answers were, letter for letter, the answer it was taught: the right values
in its habit. Read strictly, in the format it was asked for, such answers score zero.""",
}

TEACHER = {
    "role": """\
It plays the hosted LLM in the demo of SLM Swap: mostly right, with mistakes of its own.""",
    "exception": "",
    "taught": """\
It answers in the format that the system prompt asks for, except after a greeting: then it
says "Sure, here you go:" and puts the answer in a fence. Its training was kept short on
purpose, two passes over its documents or less at 80 % exact match, so that it makes honest
mistakes in tools and values.""",
    "measured": "{exact:.1%} of its answers were exactly right.",
}


def card(folder: Path) -> str:
    """Return the model card, with the figures of ``training.json`` and ``config.json``."""
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    texts = STUDENT if folder.name == "nano-student" else TEACHER
    _step, _loss, exact = training["trace"][-1]
    return CARD.format(
        role=texts["role"],
        exception=texts["exception"],
        taught=texts["taught"],
        measured=texts["measured"].format(exact=exact),
        name=folder.name,
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        heads=config["num_attention_heads"],
        context=config["max_position_embeddings"],
        vocabulary=config["vocab_size"],
        parameters=training["parameters"],
        megabytes=(folder / "model.safetensors").stat().st_size / 1e6,
        seconds=training["seconds"],
        documents=training["recipe"]["documents"],
        tokens=training["tokens_seen"] / 1e9,
    )


def checksums(folder: Path) -> str:
    """Return the SHA-256 of every file that decides an answer, as ``sha256sum`` writes it."""
    return "".join(
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n"
        for name in CHECKSUMMED
    )


def describe(folder: Path) -> None:
    """Write the card and the checksums of the model in ``folder``."""
    (folder / "README.md").write_text(card(folder), encoding="utf-8")
    (folder / "SHA256SUMS").write_text(checksums(folder), encoding="utf-8")
