"""Model cards: what a person who finds an adapter must know. Pure text from records.

A card holds counts, hashes and scores, never a row of the data, and no path of the machine
that trained. What is not known is said to be unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slm_core.records import Adapter, Dataset, Decision, Evaluation

_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's ``--max-lora-rank`` takes."""


def public_name(base_model: str) -> str:
    """Return a base model's hub id, or the last part of its path: the rest is private."""
    looks_like_path = base_model.startswith((".", "/", "~")) or base_model.count("/") > 1
    if looks_like_path or Path(base_model).is_dir():
        return Path(base_model).name or "unknown"
    return base_model


def licence_of(folder: Path) -> str | None:
    """Return the licence that a model folder's own card states, if it has one."""
    card = folder / "README.md"
    lines = card.read_text("utf-8", "replace").splitlines() if card.is_file() else []
    if lines[:1] != ["---"]:
        return None
    for line in lines[1:]:
        key, _, value = line.partition(":")
        if key == "license" and value.strip():
            return value.strip().strip("'\"")
        if line == "---":
            return None
    return None


def adapter_card(
    adapter: Adapter,
    *,
    base_model: str | None = None,
    base_licence: str | None = None,
    rank: int | None = None,
    dataset: Dataset | None = None,
    evaluations: Sequence[Evaluation] = (),
    decisions: Sequence[Decision] = (),
    repo: str | None = None,
) -> str:
    """Return the card of an adapter.

    Args:
        adapter: its record.
        base_model: hub id of the base model, where the record has a path.
        base_licence: licence of the base model.
        rank: of the LoRA matrices.
        dataset: what it was trained on, for its counts.
        evaluations: of this adapter.
        decisions: on this adapter.
        repo: hub id that the card is published under.
    """
    base = base_model or public_name(adapter.base_model)
    where = repo or "PATH_OF_THIS_FOLDER"
    sections = [
        _head(base, base_licence, ["lora", "tool-calling"], "peft"),
        f"# {adapter.id}",
        f"A LoRA adapter trained by SLM Swap {adapter.code_version} to make tool calls "
        f"({', '.join(adapter.tracks)}). It fits one base model only and expects the prompt it "
        "was trained with: serve it through SLM Swap, or render prompts with the same context "
        "prefix.",
        _table(_origin(adapter, base, base_licence, rank)),
        "## Training data and course",
        _table(_training(adapter, dataset)),
        "The data itself is not part of this repository.",
        *_scores(evaluations, decisions),
        "## How to load it",
        _loading(base, where, rank),
        *_limits(adapter),
        "`slm_adapter.json` holds the full record, the loss curve included.",
    ]
    return "\n\n".join(sections) + "\n"


def merged_card(
    adapter: Adapter, *, dtype: str, from_nf4: bool, check: Mapping[str, Any], forced: bool
) -> str:
    """Return the card of a base model with an adapter merged into it."""
    base = public_name(adapter.base_model)
    into = "the 4-bit NF4 weights that it was trained on, unpacked" if from_nf4 else "the weights"
    rows = {
        "base model": f"`{base}`",
        "SHA-256 of the base weights": f"`{adapter.base_sha256}`",
        "adapter": f"`{adapter.id}`",
        "dtype": dtype,
        "context prefix": f"`{adapter.cep_id or 'none'}`",
        "prompt hash": f"`{adapter.prompt_hash}`",
    }
    compared = {
        "inputs": f"{check['prompts']} prompts, {check['rows']} rows, "
        f"{check['positions']} positions",
        "same most likely token": f"{check['equal_tokens']:.2%}",
        "difference of scores, mean and largest": f"{check['mean_difference']:.3g}, "
        f"{check['max_difference']:.3g}",
        "perplexity before and after": f"{_number(check['perplexity_before'])}, "
        f"{_number(check['perplexity_after'])}",
    }
    sections = [
        _head(base, None, ["tool-calling", "merged-lora"], "transformers"),
        f"# {base} with {adapter.id}",
        f"The adapter is merged into {into}. Load it as any model. It expects the prompt that "
        "the adapter was trained with, context prefix included.",
        _table(rows),
        "## Compared with base and adapter",
        _table(compared),
    ]
    if forced:
        sections.append(
            "**These numbers are beyond the limits; it was published by force.** Evaluate it "
            "before use."
        )
    return "\n\n".join([*sections, *_limits(adapter), "`slm_merged.json` holds the record."]) + "\n"


def _head(base: str, licence: str | None, tags: list[str], library: str) -> str:
    lines = ["---", f"library_name: {library}", "pipeline_tag: text-generation"]
    if "/" in base:  # the hub rejects a base model that is no hub id
        lines.append(f"base_model: {base}")
    if licence:
        lines.append(f"license: {licence}")
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(
        ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    )


def _origin(adapter: Adapter, base: str, licence: str | None, rank: int | None) -> dict[str, str]:
    return {
        "base model": f"`{base}`",
        "licence of the base model": licence or "unknown here; see the base model's own card",
        "SHA-256 of the base weights": f"`{adapter.base_sha256}`",
        "SHA-256 of the adapter's weights": f"`{adapter.weights_sha256}`",
        "rank": str(rank) if rank else "see `adapter_config.json`",
        "context prefix": f"`{adapter.cep_id or 'none'}`",
        "prompt hash": f"`{adapter.prompt_hash}`",
        "spec": f"`{adapter.spec_digest}`",
        "base weights in training": str(adapter.summary.get("quantization", "unknown")).replace(
            "none", "not quantized"
        ),
    }


def _training(adapter: Adapter, dataset: Dataset | None) -> dict[str, str]:
    said = adapter.summary
    facts = {"dataset": f"`{adapter.dataset_id}`"}
    if dataset:
        facts["rows"] = ", ".join(f"{count} {split}" for split, count in dataset.rows.items())
    facts["steps, epochs, examples"] = ", ".join(
        _number(said.get(key)) for key in ("steps", "epochs", "examples")
    )
    facts["why it stopped"] = str(said.get("stop_reason", "epochs done"))
    facts["tokens, supervised"] = ", ".join(
        _number(said.get(key)) for key in ("tokens", "supervised_tokens")
    )
    facts["loss, first and last"] = ", ".join(
        _number(said.get(key)) for key in ("first_loss", "last_loss")
    )
    facts["validation loss, perplexity"] = ", ".join(
        _number(said.get(key)) for key in ("val_loss", "val_perplexity")
    )
    if said.get("cut"):
        facts["rows cut to fit"] = _number(said["cut"])
    return facts


def _scores(evaluations: Sequence[Evaluation], decisions: Sequence[Decision]) -> list[str]:
    rows: list[str] = []
    for evaluation in evaluations:
        for arm in evaluation.arms:
            rows += [
                f"| {arm.track} | {arm.arm} | {name} | {metric.value:.3f} "
                f"({metric.low:.3f} to {metric.high:.3f}) | {metric.n} |"
                for name, metric in arm.metrics.items()
                if arm.arm in ("adapter", "teacher")
            ]
    found: list[str] = []
    if rows:
        head = ["| track | model | metric | value, 95 % interval | rows |", "|---|---|---|---|---|"]
        found += ["## Scores on a frozen test set", "\n".join([*head, *rows])]
    if decisions:
        found.append("\n".join(f"Decision `{one.id}`: **{one.outcome}**." for one in decisions))
    if not found:
        found.append("It has not been evaluated as far as this card knows.")
    return found


def _loading(base: str, where: str, rank: int | None) -> str:
    most = next((size for size in _VLLM_RANKS if size >= (rank or 64)), _VLLM_RANKS[-1])
    return f"""```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "{where}")
```

With vLLM:

```bash
vllm serve {base} --enable-lora --max-lora-rank {most} --lora-modules slm={where}
```

Then ask for the model `slm`."""


def _limits(adapter: Adapter) -> list[str]:
    prefix = "the context prefix as the start of the system message" if adapter.cep_id else ""
    expects = f"tool definitions as SLM Swap writes them into the system message, and {prefix}"
    return [
        "## Limits",
        "* It imitates answers of another model, its mistakes included.\n"
        f"* It learned the tracks {', '.join(adapter.tracks)} only, on tools like those of its "
        "dataset.\n"
        f"* It expects {expects.removesuffix(', and ')}.\n"
        "* On other base weights it is worthless; compare the SHA-256.",
    ]


def _number(value: Any) -> str:
    if value is None:
        return "unknown"
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}"
