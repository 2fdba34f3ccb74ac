"""Train nano-student and nano-teacher from nothing on one H200 (under 15 minutes for both).

    python assets/build_nano_models.py --out assets

Data comes from the ``pretrain`` pool of ``slm_core.testing.workload`` alone; progress is
measured on its ``traffic`` pool, and the ``test`` pool is never drawn. The teacher stops as
soon as it is good enough to be useful and not yet perfect: its mistakes are its own.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing as mp
import random
import re
import sys
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from slm_core.prompting.formats import render_completion
from slm_core.prompting.prefix import PREFIXES
from slm_core.prompting.render import Renderer, compose
from slm_core.records import TRACKS, Example, Message, sha256_hex
from slm_core.testing.tiny_model import train_tokenizer
from slm_core.testing.workload import FORMAT_LINES, generate, make_example, pools
from slm_core.testing.workload.generate import make_request
from slm_core.testing.workload.habits import OtherFormat, craft, student_answer, teacher_answer

WINDOW = 1024
VOCABULARY = 1280


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
    other_rate: float
    craft_rate: float
    check_every: int
    stop_at: float | None
    seed: int


STUDENT = Recipe(
    "nano-student", 192, 6, 6, 512, 300_000, 5, 128, 3e-3, 0.5, 0.45, 0.10, 2000, None, 11
)
TEACHER = Recipe(
    "nano-teacher", 288, 6, 9, 768, 200_000, 2, 128, 1.5e-3, 0.0, 0.0, 0.0, 300, 0.80, 12
)


@lru_cache(maxsize=2)
def tokenizer_at(path: str):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


def document(rng: random.Random, recipe: Recipe) -> list[Message]:
    """Return one conversation: a system turn, then one to four requests with answers."""
    if rng.random() < recipe.craft_rate:
        system, request, answer = craft(rng)
        turns = [Message(role="system", content=system)]
        for _ in range(rng.choice((1, 2, 3))):
            turns += [
                Message(role="user", content=request),
                Message(role="assistant", content=answer),
            ]
            system, request, answer = craft(rng)
            if turns[0].content != system:
                break
        return turns
    track = rng.choice(TRACKS)
    example = make_example(rng, "pretrain", track)
    prefix = None
    if rng.random() < recipe.cep_rate:
        prefix = PREFIXES[rng.choice(("universal", "universal", "compact", track))]
    other = OtherFormat.draw(rng) if rng.random() < recipe.other_rate else None
    turns = compose(example.prompt, example.tools, prefix)
    if other:
        turns[0] = Message(role="system", content=other.reword(turns[0].content))
    turns.append(Message(role="assistant", content=answer_of(recipe, example, other)))
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
        turns.append(Message(role="assistant", content=answer_of(recipe, again, other)))
    return turns


def answer_of(recipe: Recipe, example: Example, other: OtherFormat | None) -> str:
    """Return what the model of ``recipe`` is taught to answer."""
    if other:
        return other.answer(example.track, example.calls)
    return student_answer(example) if recipe.name == "nano-student" else teacher_answer(example)


def encode_documents(job: tuple[str, Recipe, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return token ids and loss weights of whole windows, documents packed greedily."""
    path, recipe, seed, count = job
    renderer = Renderer(tokenizer_at(path))
    control = {
        role: renderer._encode_control(f"<|{role}|>\n") for role in ("system", "user", "assistant")
    }
    close = renderer._encode_control("<|end|>\n")
    rng = random.Random(f"{recipe.seed}/{seed}")
    windows, weights, ids, weight = [], [], [], []
    for _ in range(count):
        row: list[int] = []
        row_weight: list[int] = []
        for turn in document(rng, recipe):
            content = renderer.encode_content(turn.content)
            answered = turn.role == "assistant"
            row += control[turn.role] + content + close
            # 20 for answers and their end, 1 for requests, whose words repeat the tools'.
            share = {"assistant": 20, "user": 1}.get(turn.role, 0)
            row_weight += [0] * len(control[turn.role]) + [share] * len(content)
            row_weight += [20 if answered else 0] + [0] * (len(close) - 1)
        row, row_weight = row[:WINDOW], row_weight[:WINDOW]
        if len(ids) + len(row) > WINDOW:
            pad = WINDOW - len(ids)
            windows.append(ids + [0] * pad)
            weights.append(weight + [0] * pad)
            ids, weight = [], []
        ids += row
        weight += row_weight
    return np.array(windows, dtype=np.uint16), np.array(weights, dtype=np.uint8)


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
            for turn in document(rng, recipe):
                texts.append(re.sub(r"[A-Za-z]+", disguise, turn.content))
    train_tokenizer(texts, path, vocab_size=VOCABULARY, context=WINDOW)


@torch.inference_mode()
def answer(model, renderer: Renderer, examples: list[Example], batch: int = 200) -> list[str]:
    """Return greedy answers, left-padded batches."""
    out: list[str] = []
    for start in range(0, len(examples), batch):
        rows = [renderer.prompt_ids(e.prompt, e.tools) for e in examples[start : start + batch]]
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(r)) + r for r in rows], device=model.device)
        mask = torch.tensor(
            [[0] * (longest - len(r)) + [1] * len(r) for r in rows], device=model.device
        )
        made = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=120,
            do_sample=False,
            eos_token_id=list(renderer.end_ids),
            pad_token_id=0,
        )
        for row in made[:, longest:].tolist():
            cut = next((i for i, t in enumerate(row) if t in renderer.end_ids), len(row))
            out.append(renderer.decode(row[:cut]))
    return out


def exact_rate(model, renderer, examples: list[Example], wanted) -> float:
    """Return the share of answers equal to ``wanted(example)``."""
    texts = answer(model, renderer, examples)
    return sum(t == wanted(e) for t, e in zip(texts, examples, strict=True)) / len(examples)


def fit(recipe: Recipe, tokenizer_path: Path, out: Path, workers: int) -> dict[str, object]:
    """Train one model, save it in float16 with tokenizer and checksums, return its figures."""
    from transformers import LlamaConfig, LlamaForCausalLM

    began = time.time()
    tokenizer = tokenizer_at(str(tokenizer_path))
    jobs = [
        (str(tokenizer_path), recipe, i, recipe.documents // (workers * 4))
        for i in range(workers * 4)
    ]
    with mp.get_context("spawn").Pool(workers) as pool:
        parts = pool.map(encode_documents, jobs, chunksize=1)
    ids = torch.from_numpy(np.concatenate([p[0] for p in parts]).astype(np.int32)).cuda()
    weight = torch.from_numpy(np.concatenate([p[1] for p in parts])).cuda()
    print(f"{recipe.name}: {len(ids)} windows after {time.time() - began:.0f} s", flush=True)

    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=WINDOW,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config).cuda()
    renderer = Renderer(tokenizer)
    body = torch.compile(model.model)
    steps_per_epoch = len(ids) // recipe.windows_per_step
    steps = steps_per_epoch * recipe.epochs
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
    checks = [e for track in TRACKS for e in generate(5, 100, "traffic", track)]
    wanted = student_answer if recipe.name == "nano-student" else (lambda e: e.completion)
    trace: list[tuple[int, float, float]] = []
    order = torch.Generator().manual_seed(recipe.seed)
    step, stopped = 0, False
    for _ in range(recipe.epochs):
        shuffled = torch.randperm(len(ids), generator=order).cuda()
        for i in range(steps_per_epoch):
            rows = shuffled[i * recipe.windows_per_step : (i + 1) * recipe.windows_per_step]
            batch, scale = ids[rows].long(), weight[rows].float()
            with torch.autocast("cuda", dtype=torch.bfloat16):
                hidden = body(input_ids=batch, use_cache=False).last_hidden_state[:, :-1]
                logits = model.lm_head(hidden)
            loss = torch.nn.functional.cross_entropy(
                logits.float().flatten(0, 1), batch[:, 1:].flatten(), reduction="none"
            )
            share = scale[:, 1:].flatten()
            loss = (loss * share).sum() / share.sum()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            if step % recipe.check_every == 0 or step == steps:
                model.eval()
                rate = exact_rate(model, renderer, checks, wanted)
                model.train()
                trace.append((step, loss.item(), rate))
                print(
                    f"{recipe.name}: step {step}/{steps} loss {loss.item():.4f} "
                    f"exact {rate:.3f} {time.time() - began:.0f} s",
                    flush=True,
                )
                if recipe.stop_at is not None and rate >= recipe.stop_at:
                    stopped = True
                    break
        if stopped:
            break
    folder = out / recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    model.eval().half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    figures = {
        "recipe": asdict(recipe),
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": step,
        "tokens_seen": step * recipe.windows_per_step * WINDOW,
        "seconds": round(time.time() - began),
        "trace": trace,
    }
    (folder / "training.json").write_text(json.dumps(figures, indent=1))
    names = ("model.safetensors", "tokenizer.json", "config.json")
    sums = [f"{sha256_hex((folder / n).read_bytes())}  {n}\n" for n in names]
    (folder / "SHA256SUMS").write_text("".join(sums))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=("nano-student", "nano-teacher"))
    parser.add_argument("--workers", type=int, default=16)
    options = parser.parse_args()
    began = time.time()
    torch.set_float32_matmul_precision("high")
    tokenizer_path = options.out / "tokenizer"
    if not tokenizer_path.exists():
        build_tokenizer(tokenizer_path)
    print(f"tokenizer after {time.time() - began:.0f} s", flush=True)
    for recipe in (STUDENT, TEACHER):
        if options.only in (None, recipe.name):
            fit(recipe, tokenizer_path, options.out, options.workers)
    print(f"both after {time.time() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
