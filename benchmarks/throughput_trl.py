"""The peer: TRL's SFTTrainer with a PEFT LoRA, at its defaults and at its best.

Every setting is LoRA r=16, alpha=32, dropout 0.05 on all linear layers, 4 x 4 rows (or packs)
of at most 2,048 tokens, bf16, and TRL's own defaults for the rest: AdamW, fused LM head. Rows
arrive tokenized, with labels, so TRL trains on the very tokens that we do. It needs
``pip install trl==1.16.0``, and bitsandbytes for QLoRA.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from benchmarks.throughput_rows import (
    SHAPES,
    Measured,
    TokenRow,
    build_model,
    peak_memory,
    use_threads,
    versions,
)

PACKED = {"packing": True, "packing_strategy": "bfd"}
NO_RECOMPUTE = {"gradient_checkpointing": False}

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {"steps": 10},
    "no checkpointing": {"steps": 16, "config": NO_RECOMPUTE},
    "bfd, sdpa": {"steps": 8, "config": PACKED | NO_RECOMPUTE},
    "bfd, flex, checkpointing": {"steps": 8, "attention": "flex_attention", "config": PACKED},
    "bfd, flex": {"steps": 12, "attention": "flex_attention", "config": PACKED | NO_RECOMPUTE},
    "bfd, flex, compile": {
        "steps": 12,
        "attention": "flex_attention",
        "config": PACKED | NO_RECOMPUTE | {"torch_compile": True},
    },
    "qlora, default": {"steps": 8, "nf4": True},
    "qlora, bfd, flex": {
        "steps": 8,
        "nf4": True,
        "attention": "flex_attention",
        "config": PACKED | NO_RECOMPUTE,
    },
}
"""Name to setting: optimizer steps, attention kernel, 4-bit base, and SFTConfig's arguments."""

CPU_SETTINGS: dict[str, dict[str, Any]] = {
    # On a CPU TRL's default is bf16 autocast too; fp32 is what we train in.
    "default": {"config": {"bf16": True}},
    "default, fp32": {},
    "no checkpointing, fp32": {"config": NO_RECOMPUTE},
}
"""What is measured for ``nano``; its steps are two epochs."""


def measure(shape: str, rows: Sequence[TokenRow], setting: dict[str, Any]) -> Measured:
    """Train for ``setting["steps"]`` optimizer steps and return what it was like."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from transformers import TrainerCallback
    from trl import SFTTrainer

    about = SHAPES[shape]
    on_gpu = about.device == "cuda"
    use_threads(shape)

    class Watch(TrainerCallback):
        """Notes when steps end; waits for the device at the borders of the timed half."""

        def __init__(self) -> None:
            self.begun = self.first = self.half = self.ended = math.nan

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.begun = now()

        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step == 1:
                self.first = now()
            if state.global_step == state.max_steps // 2:
                self.half = now()
            if state.global_step == state.max_steps:
                self.ended = now()

    def now() -> float:
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    class Counting(SFTTrainer):
        """Counts the tokens of every pass, on the device: no extra wait."""

        passes: list[tuple[int, Any, Any]]

        def training_step(self, model: Any, inputs: Any, *more: Any, **named: Any) -> Any:
            mask = inputs.get("attention_mask")
            real = mask.sum() if mask is not None else inputs["input_ids"].numel()
            learned = (inputs["labels"][:, 1:] != -100).sum()
            self.passes.append((self.state.global_step, real, learned))
            return super().training_step(model, inputs, *more, **named)

    with tempfile.TemporaryDirectory() as folder:
        watch = Watch()
        trainer = _trainer(Counting, shape, rows, setting, folder, watch)
        trainer.passes = []
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        trainer.train()
    state = trainer.state
    half = state.max_steps // 2
    timed = [(int(real), int(learned)) for step, real, learned in trainer.passes if step >= half]
    logged = [entry for entry in state.log_history if "loss" in entry]
    losses = [float(entry["loss"]) for entry in logged]
    norms = [float(entry["grad_norm"]) for entry in logged]
    if not all(map(math.isfinite, losses + norms)):
        raise ArithmeticError(f"Not finite: losses {losses}, gradient norms {norms}.")
    seconds = watch.ended - watch.half
    tokens, learned = (sum(column) for column in zip(*timed, strict=True))
    peak, reserved = peak_memory(about.device)
    more = ("trl", "bitsandbytes") if setting.get("nf4") else ("trl",)
    return Measured(
        tokens_per_second=tokens / seconds,
        supervised_tokens_per_second=learned / seconds,
        steps=state.max_steps,
        seconds=seconds,
        tokens=tokens,
        first_loss=losses[0],
        last_loss=losses[-1],
        grad_norm=fmean(norms),
        peak_gib=peak,
        reserved_gib=reserved,
        seconds_to_first_step=watch.first - watch.begun,
        versions=versions(*more),
    )


def _trainer(
    cls: Any, shape: str, rows: Sequence[TokenRow], setting: dict[str, Any], folder: str, watch: Any
) -> Any:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig

    about = SHAPES[shape]
    model = build_model(
        shape, attention=setting.get("attention", "sdpa"), nf4=setting.get("nf4", False)
    )
    steps = setting["steps"]
    fixed: dict[str, Any] = {
        "output_dir": folder,
        "per_device_train_batch_size": about.micro_batch,
        "gradient_accumulation_steps": about.accumulation,
        "max_length": about.max_length,
        "max_steps": steps,
        "learning_rate": about.learning_rate,
        "bf16": about.precision == "bf16",
        "use_cpu": about.device == "cpu",
        "logging_steps": max(1, steps // 4),
        "logging_nan_inf_filter": False,  # it would show NaN as 0
        "report_to": "none",
        "save_strategy": "no",
        "seed": 0,
        "disable_tqdm": True,
    }
    labels = [
        [token if learned else -100 for token, learned in zip(row.ids, row.supervised, strict=True)]
        for row in rows
    ]
    return cls(
        model=model,
        args=SFTConfig(**(fixed | setting.get("config", {}))),
        train_dataset=Dataset.from_dict({"input_ids": [row.ids for row in rows], "labels": labels}),
        processing_class=_tokenizer(),
        peft_config=LoraConfig(
            r=16,
            lora_alpha=32,
            lora_dropout=0.05,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
        callbacks=[watch],
    )


def _tokenizer() -> Any:
    """Return a tokenizer that TRL asks for special tokens, and for nothing else."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<bos>": 0, "<eos>": 1, "<pad>": 2, "<unk>": 3}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")),
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
