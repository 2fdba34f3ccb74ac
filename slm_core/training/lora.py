"""The student: a frozen base model with a fresh LoRA adapter on it. Imports torch."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from slm_core.errors import ConfigError, ModelError
from slm_core.training.spec import TrainingSpec

_CHECKED_TOKENS = 16


class Student:
    """A base model with its adapter, split where training saves work: before the head."""

    def __init__(self, model: PeftModel, device: torch.device, precision: torch.dtype) -> None:
        self.model = model
        self.device = device
        self.precision = precision
        base = cast(Any, model.get_base_model())
        self._decoder: nn.Module = getattr(base, base.base_model_prefix)
        self._head: nn.Module = base.get_output_embeddings()

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """Name to parameter of the adapter."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def hidden(self, ids: Tensor) -> Tensor:
        """Return the last hidden states, (rows, length, width), of ``ids`` (rows, length).

        Padding belongs on the right. A causal model then never looks at it from a real
        token, so there is no mask to build, and attention takes its fast causal path.
        """
        return self._decoder(input_ids=ids, use_cache=False)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the scores over the vocabulary, (..., vocabulary), of hidden states."""
        return self._head(hidden)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return the context in which forward passes run: mixed precision under bf16."""
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16
        )


def load_student(folder: Path, spec: TrainingSpec) -> Student:
    """Load the base model from ``folder`` and put a new adapter on it, seeded by the spec.

    Raises:
        ConfigError: no GPU though asked for, or a length or target that the model lacks.
        ModelError: the folder's weights cannot be read, or the model's scores are more than
            a product with its output layer.
    """
    device = _device(spec)
    precision = _precision(spec, device)
    base = _load_base(folder, precision)
    context = getattr(base.config, "max_position_embeddings", None)
    if context is not None and spec.max_length > context:
        raise ConfigError(
            f"max_length={spec.max_length} is more than the {context} tokens that the model reads."
        )
    target = spec.lora_target if isinstance(spec.lora_target, str) else list(spec.lora_target)
    config = LoraConfig(
        r=spec.lora_r,
        lora_alpha=spec.lora_alpha,
        lora_dropout=spec.lora_dropout,
        target_modules=target,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(spec.seed)
    try:
        model = get_peft_model(base, config)
    except ValueError as error:
        raise ConfigError(f"No adapter fits lora_target={spec.lora_target!r}: {error}") from error
    # The folder is where the model happens to lie; the record says what was asked for.
    config.base_model_name_or_path = spec.base_model
    student = Student(cast(PeftModel, model.to(device)), device, precision)
    _check_head(student)
    return student


def _load_base(folder: Path, precision: torch.dtype) -> Any:
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=precision, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"The model in {folder} cannot be loaded: {error}") from error
    base, loading = loaded
    if loading["missing_keys"]:
        # transformers would go on with random numbers in their place.
        raise ModelError(
            f"The weights in {folder} lack some of the model's tensors.",
            missing=sorted(loading["missing_keys"]),
        )
    return base


def _device(spec: TrainingSpec) -> torch.device:
    if spec.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device='cuda', but torch sees no GPU; use device='auto' or 'cpu'.")
    if spec.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(spec.device)


def _precision(spec: TrainingSpec, device: torch.device) -> torch.dtype:
    if spec.precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if spec.precision == "bf16" else torch.float32


@torch.no_grad()
def _check_head(student: Student) -> None:
    """Some models scale or cap their scores after the output layer; see that this one does not."""
    student.model.eval()
    ids = torch.arange(_CHECKED_TOKENS, device=student.device)[None]
    with student.autocast():
        whole = student.model(input_ids=ids, use_cache=False).logits
        ours = student.logits(student.hidden(ids))
    if not torch.allclose(whole, ours, rtol=1e-2, atol=1e-3):  # bf16 has 3 digits
        raise ModelError(
            "This model changes its scores after the output layer (a scale or a cap), which "
            "this trainer does not do; choose another base model.",
            largest_difference=float((whole - ours).abs().max()),
        )
