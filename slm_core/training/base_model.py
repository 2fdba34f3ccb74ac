"""What a training needs before it begins: GPUs or none, and a base model that can be had."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from slm_core.backends.model_access import check_access
from slm_core.backends.model_hub import ModelAccess
from slm_core.backends.model_memory import MemoryNeed
from slm_core.records import Gpu
from slm_core.training.spec import TrainingSpec


def wants_gpus(spec: TrainingSpec, dev: Path = Path("/dev")) -> bool:
    """Whether a training runs on GPUs of this machine."""
    # A container may have been given any of them: its only one need not be number 0.
    return spec.device == "cuda" or (spec.device == "auto" and any(dev.glob("nvidia[0-9]*")))


def memory_need(spec: TrainingSpec, gpu_memory_bytes: int | None) -> MemoryNeed:
    """Return what ``spec`` asks of each GPU."""
    ladder = spec.on_oom == "ladder"
    return MemoryNeed(
        pass_tokens=spec.pass_tokens,
        # The ladder splits a pass down to its longest row, then shortens the rows.
        least_tokens=min((spec.max_length, *spec.shorter_lengths)) if ladder else None,
        lora_r=spec.lora_r,
        precision="fp32" if spec.precision == "fp32" else "bf16",
        quantization=spec.quantization,
        may_recompute=spec.gradient_checkpointing != "off" or ladder,
        may_quantize=ladder and not spec.shard,
        shards=spec.world_size if spec.shard else 1,
        gpu_memory_bytes=gpu_memory_bytes,
    )


def check_base_model(
    spec: TrainingSpec, *, token: str | None = None, gpus: Iterable[Gpu] = ()
) -> ModelAccess:
    """Return what is known of the base model if the training can have and hold it.

    Args:
        spec: the training.
        token: of the Hugging Face hub.
        gpus: those to train on; none estimates their memory without judging.

    Raises:
        ModelError: the folder does not exist or holds no whole model.
        ConfigError: with every problem, and what to do about each.
        MissingDependency: the model is on the hub, and huggingface_hub is not installed.
    """
    smallest = min((gpu.memory_bytes for gpu in gpus if gpu.memory_bytes), default=None)
    need = memory_need(spec, smallest)
    return check_access(spec.base_model, token=token, need=need)
