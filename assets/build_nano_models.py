"""Train nano-student and nano-teacher from nothing on one H200 (under 15 minutes for both).

    python -m assets.build_nano_models --out assets
    python -m assets.build_nano_models --out assets --cards-only  # trains nothing

Data comes from the ``pretrain`` pool of ``slm_core.testing.workload`` alone; progress is
measured on its ``traffic`` pool, and the ``test`` pool is never drawn. The teacher learns
for a short time only, enough to be useful and not to be perfect: its mistakes are its own.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from assets.nano_model_folder import describe
from slm_core.prompting.formats import render_completion
from slm_core.prompting.prefix import PREFIXES
from slm_core.prompting.render import Renderer, compose
from slm_core.records import TRACKS, Example, Message
from slm_core.testing.tiny_model import train_tokenizer
from slm_core.testing.workload import FORMAT_LINES, generate, make_example, pools
from slm_core.testing.workload.generator import make_request
from slm_core.testing.workload.habits import OtherFormat, craft, student_answer, teacher_answer

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

CONTEXT = 1024
VOCABULARY = 1280
JOBS = 64
"""Parts the documents are drawn in, each with its own seed; not the number of processes."""

ANSWER_WEIGHT = 20
"""Loss weight of answers and their ends; requests, whose words repeat the tools', have 1."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a nano model is."""

    name: str
    width: int
    layers: int
    heads: int
    hidden: int
    documents: int
    epochs: int
    windows_per_step: int
    learning_rate: float
    cep_rate: float
    """Share of conversations under one of the context prefixes."""
    other_rate: float
    """Share of conversations that ask for a made-up format, and get it."""
    craft_rate: float
    """Share of documents about markup or records instead of tools."""
    check_every: int
    """Steps between two measurements."""
    stop_at: float | None
    """Exact match at which training ends early."""
    seed: int


STUDENT = Recipe(
    name="nano-student",
    width=192,
    layers=6,
    heads=6,
    hidden=512,
    documents=300_000,
    epochs=5,
    windows_per_step=128,
    learning_rate=3e-3,
    cep_rate=0.5,
    other_rate=0.45,
    craft_rate=0.10,
    check_every=2000,
    stop_at=None,
    seed=11,
)
TEACHER = Recipe(
    name="nano-teacher",
    width=288,
    layers=6,
    heads=9,
    hidden=768,
    documents=200_000,
    epochs=2,
    windows_per_step=128,
    learning_rate=1.5e-3,
    cep_rate=0.0,
    other_rate=0.0,
    craft_rate=0.0,
    check_every=300,
    stop_at=0.80,
    seed=12,
)


def draw_document(rng: random.Random, recipe: Recipe) -> list[Message]:
    """Return one conversation: a system turn, then one to four requests with answers."""
    if rng.random() < recipe.craft_rate:
        return draw_craft(rng)
    track = rng.choice(TRACKS)
    example = make_example(rng, "pretrain", track)
    prefix = None
    if rng.random() < recipe.cep_rate:
        prefix = PREFIXES[rng.choice(("universal", "universal", "compact", track))]
    other = OtherFormat.draw(rng) if rng.random() < recipe.other_rate else None
    turns = compose(example.prompt, example.tools, prefix)
    if other:
        turns[0] = Message(role="system", content=other.reword(turns[0].content))
    turns.append(Message(role="assistant", content=taught_answer(recipe, example, other)))
    for _ in range(rng.choice((0, 0, 1, 2, 3))):
        query, calls = make_request(rng, "pretrain", example.tools)
        again = example.model_copy(
            update={
                "prompt": (Message(role="user", content=query),),
                "calls": tuple(calls),
                "completion": render_completion(track, calls),
            }
        )
        turns.append(again.prompt[0])
        turns.append(Message(role="assistant", content=taught_answer(recipe, again, other)))
    return turns


def draw_craft(rng: random.Random) -> list[Message]:
    """Return a conversation about one craft: up to three tasks, until another one is drawn."""
    system, request, answer = craft(rng)
    turns = [Message(role="system", content=system)]
    for _ in range(rng.choice((1, 2, 3))):
        turns.append(Message(role="user", content=request))
        turns.append(Message(role="assistant", content=answer))
        system, request, answer = craft(rng)
        if turns[0].content != system:
            break
    return turns


def taught_answer(recipe: Recipe, example: Example, other: OtherFormat | None) -> str:
    """Return what the model of ``recipe`` is taught to answer."""
    if other:
        return other.answer(example.track, example.calls)
    return student_answer(example) if recipe.name == STUDENT.name else teacher_answer(example)


def build_tokenizer(path: Path) -> None:
    """Train the shared tokenizer on answers of both models, prefixes and format lines."""
    # No word of the lists may become one token, or the models would never learn to copy
    # words that are several: each is replaced by an invented one.
    rng = random.Random(1)
    listed = {*pools.VERBS, *pools.NOUNS, *pools.PARAMETERS, *pools.QUALITIES}

    def disguise(match: re.Match[str]) -> str:
        return pools.invented_word(rng) if match[0].lower() in listed else match[0]

    texts = [prefix.text for prefix in PREFIXES.values()] * 200 + list(FORMAT_LINES.values()) * 200
    for recipe in (STUDENT, TEACHER):
        for _ in range(6_000):
            for turn in draw_document(rng, recipe):
                texts.append(re.sub(r"[A-Za-z]+", disguise, turn.content))
    train_tokenizer(texts, path, vocab_size=VOCABULARY, context=CONTEXT)


@lru_cache(maxsize=1)
def tokenizer_at(path: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer saved at ``path``."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


def encode_documents(job: tuple[str, Recipe, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return token ids and loss weights, [windows, CONTEXT] each, documents packed greedily."""
    tokenizer_path, recipe, part = job
    renderer = Renderer(tokenizer_at(tokenizer_path))
    rng = random.Random(f"{recipe.seed}/{part}")
    windows, weights = [], []
    ids: list[int] = []
    weight: list[int] = []
    for _ in range(recipe.documents // JOBS):
        row, row_weight = encode_turns(renderer, draw_document(rng, recipe))
        if len(ids) + len(row) > CONTEXT:
            pad = [0] * (CONTEXT - len(ids))
            windows.append(ids + pad)
            weights.append(weight + pad)
            ids, weight = [], []
        ids += row
        weight += row_weight
    return np.array(windows, dtype=np.uint16), np.array(weights, dtype=np.uint8)


def encode_turns(renderer: Renderer, turns: list[Message]) -> tuple[list[int], list[int]]:
    """Return ids and loss weights of one conversation, cut at CONTEXT."""
    close = renderer.encode_control("<|end|>\n")
    ids: list[int] = []
    weight: list[int] = []
    for turn in turns:
        start = renderer.encode_control(f"<|{turn.role}|>\n")
        content = renderer.encode_content(turn.content)
        ids += start + content + close
        share = {"assistant": ANSWER_WEIGHT, "user": 1}.get(turn.role, 0)
        end = ANSWER_WEIGHT if turn.role == "assistant" else 0
        weight += [0] * len(start) + [share] * len(content) + [end] + [0] * (len(close) - 1)
    return ids[:CONTEXT], weight[:CONTEXT]


@torch.inference_mode()
def exact_rate(
    model: LlamaForCausalLM,
    renderer: Renderer,
    examples: list[Example],
    wanted: Callable[[Example], str],
) -> float:
    """Return the share of greedy answers equal to ``wanted(example)``."""
    right = 0
    for start in range(0, len(examples), 200):
        batch = examples[start : start + 200]
        rows = [renderer.prompt_ids(e.prompt, e.tools) for e in batch]
        longest = max(map(len, rows))
        padded = [[0] * (longest - len(row)) + row for row in rows]
        seen = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        made = model.generate(
            input_ids=torch.tensor(padded, device=model.device),
            attention_mask=torch.tensor(seen, device=model.device),
            max_new_tokens=120,
            do_sample=False,
            eos_token_id=list(renderer.end_ids),
            pad_token_id=0,
        )
        for example, row in zip(batch, made[:, longest:].tolist(), strict=True):
            end = next((i for i, t in enumerate(row) if t in renderer.end_ids), len(row))
            right += renderer.decode(row[:end]) == wanted(example)
    return right / len(examples)


def progress_checks() -> list[Example]:
    """Return 100 requests per track from the ``traffic`` pool; never trained on."""
    return [example for track in TRACKS for example in generate(5, 100, "traffic", track)]


def batches(recipe: Recipe, windows: int) -> Iterator[torch.Tensor]:
    """Yield the rows of each step, in a new order every epoch."""
    order = torch.Generator().manual_seed(recipe.seed)
    for _ in range(recipe.epochs):
        shuffled = torch.randperm(windows, generator=order).cuda()
        for i in range(windows // recipe.windows_per_step):
            yield shuffled[i * recipe.windows_per_step : (i + 1) * recipe.windows_per_step]


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """Return the model with random weights, on the GPU."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config).cuda()


def fit(recipe: Recipe, tokenizer_path: Path, folder: Path, workers: int) -> None:
    """Train one model and save it in float16, with tokenizer, figures, card and checksums."""
    began = time.monotonic()
    jobs = [(str(tokenizer_path), recipe, part) for part in range(JOBS)]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        parts = pool.map(encode_documents, jobs, chunksize=1)
    ids = torch.from_numpy(np.concatenate([p[0] for p in parts]).astype(np.int32)).cuda()
    weights = torch.from_numpy(np.concatenate([p[1] for p in parts])).cuda()
    print(f"{recipe.name}: {len(ids)} windows, {time.monotonic() - began:.0f} s", flush=True)

    tokenizer = tokenizer_at(str(tokenizer_path))
    model = new_model(recipe, tokenizer)
    renderer = Renderer(tokenizer)
    body = torch.compile(model.model)
    steps = len(ids) // recipe.windows_per_step * recipe.epochs
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=0.05,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: (
            min(1.0, (s + 1) / 200) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * s / steps)))
        ),
    )
    checks = progress_checks()
    wanted = student_answer if recipe.name == STUDENT.name else (lambda example: example.completion)
    trace: list[tuple[int, float, float]] = []
    step = 0
    for step, rows in enumerate(batches(recipe, len(ids)), start=1):
        batch, weight = ids[rows].long(), weights[rows].float()[:, 1:].flatten()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            hidden = body(input_ids=batch, use_cache=False).last_hidden_state[:, :-1]
            logits = model.lm_head(hidden)
        loss = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), batch[:, 1:].flatten(), reduction="none"
        )
        loss = (loss * weight).sum() / weight.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % recipe.check_every and step < steps:
            continue
        model.eval()
        rate = exact_rate(model, renderer, checks, wanted)
        model.train()
        trace.append((step, loss.item(), rate))
        print(f"{recipe.name}: step {step}/{steps}, loss {loss.item():.4f}, exact {rate}")
        if recipe.stop_at is not None and rate >= recipe.stop_at:
            break
    figures = {
        "recipe": asdict(recipe),
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": step,
        "tokens_seen": step * recipe.windows_per_step * CONTEXT,
        "seconds": round(time.monotonic() - began),
        "trace": trace,
    }
    save(model, tokenizer, figures, folder)


def save(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    figures: dict[str, Any],
    folder: Path,
) -> None:
    """Write a complete model folder."""
    model.eval().half().save_pretrained(folder)
    (folder / "generation_config.json").unlink()  # it only repeats config.json
    tokenizer.save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps(figures, indent=1) + "\n")
    describe(folder)


def main() -> None:
    """Build what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where the model folders go")
    parser.add_argument("--only", choices=(STUDENT.name, TEACHER.name))
    parser.add_argument("--cards-only", action="store_true", help="describe models that are there")
    parser.add_argument("--workers", type=int, default=16, help="processes that draw documents")
    options = parser.parse_args()
    recipes = [r for r in (STUDENT, TEACHER) if options.only in (None, r.name)]
    if options.cards_only:
        for recipe in recipes:
            describe(options.out / recipe.name)
        return
    torch.set_float32_matmul_precision("high")
    with tempfile.TemporaryDirectory() as folder:
        tokenizer_path = Path(folder)
        build_tokenizer(tokenizer_path)
        for recipe in recipes:
            fit(recipe, tokenizer_path, options.out / recipe.name, options.workers)


if __name__ == "__main__":
    main()
