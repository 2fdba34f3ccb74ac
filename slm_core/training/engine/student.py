"""The student: a frozen base model with a fresh LoRA adapter on it. Imports torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import Tensor, nn

from slm_core.backends.loading import device_of, load_base
from slm_core.errors import ConfigError, ModelError
from slm_core.training.engine import attention
from slm_core.training.engine.adapted import forget_inner, take_over
from slm_core.training.engine.batches import Pass
from slm_core.training.engine.dropout import TokenKeys
from slm_core.training.engine.loss import compile_loss, linear_cross_entropy
from slm_core.training.engine.nf4 import nf4_config
from slm_core.training.spec import TrainingSpec

_CHECKED_TOKENS = 16


class Student:
    """A base model with its adapter, split where training saves work: before the head."""

    def __init__(self, model: PeftModel, device: torch.device, precision: torch.dtype) -> None:
        self.model = model
        self.device = device
        self.precision = precision
        self.keys = TokenKeys()
        base = cast(Any, model.get_base_model())
        self.decoder: Any = getattr(base, base.base_model_prefix)
        self._head: Any = base.get_output_embeddings()
        self._checkpointing = False
        self._one_length = False

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """Name to parameter of the adapter."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, in order."""
        return self.decoder.layers

    @property
    def adapts_head(self) -> bool:
        """Whether the adapter would change the output layer, which is used as it is."""
        return any(p.requires_grad for p in self._head.parameters())

    @property
    def checkpointing(self) -> bool:
        """Whether activations are recomputed in the backward pass."""
        return self._checkpointing

    def loss_sum(self, batch: Pass) -> Tensor:
        """Return the summed cross-entropy over the supervised tokens of ``batch``, in nats."""
        hidden = self.hidden(batch)
        # Only positions that are scored meet the output layer, the widest one.
        scored = hidden.flatten(0, 1).index_select(0, batch.predicting)
        return linear_cross_entropy(scored, self._head.weight, self._head.bias, batch.targets)

    def hidden(self, batch: Pass) -> Tensor:
        """Return the last hidden states, (lines, length, width), of ``batch``."""
        self.keys.tensor = batch.keys
        borders: dict[str, Any] = {}
        if batch.borders is not None:
            if self._one_length:
                # Passes of one length still hold more rows or fewer.
                torch._dynamo.mark_dynamic(batch.borders.bounds, 0)
            borders = {
                "segment_bounds": batch.borders.bounds,
                "segment_longest": batch.borders.longest,
            }
        # The mask stays away: padding is on the right, where no real token looks, and the
        # borders keep packed rows apart. A cache would make transformers forget borders.
        return self.decoder(
            input_ids=batch.ids, position_ids=batch.positions, use_cache=False, **borders
        )[0]

    def forget_pass(self) -> None:
        """Let go of every tensor of a pass that failed half-way."""
        self.keys.tensor = None
        forget_inner(self.model)

    def scores(self, hidden: Tensor) -> Tensor:
        """Return the scores over the vocabulary, (..., vocabulary), of hidden states."""
        # By its weights alone, as in training: the check of the forward pass relies on that.
        return nn.functional.linear(hidden, self._head.weight, self._head.bias)

    def use_checkpointing(self) -> None:
        """From now on recompute activations; needs less memory and a third more time."""
        # Dropout here has no generator whose state would have to be kept.
        options = {"use_reentrant": False, "preserve_rng_state": False}
        if hasattr(self.decoder, "activation_checkpointing_enable"):
            self.decoder.activation_checkpointing_enable(options)
        else:  # transformers before 5.20
            self.decoder.gradient_checkpointing_enable(options)
        self._checkpointing = True

    def shard(self) -> None:
        """Spread the frozen weights over all workers; each layer is fetched when it is used.

        The adapter stays whole on every worker: it is small, and its gradient is summed
        once a step as without sharding.
        """
        from torch.distributed.fsdp import fully_shard

        own = set(self.trainable.values())
        inside = {p for layer in self.layers for p in layer.parameters()}
        for layer in self.layers:
            fully_shard(layer, ignored_params=own & set(layer.parameters()))
        # The root fetches the next layer while one computes. Embedding and norm stay whole.
        rest = set(self.decoder.parameters()) - inside
        fully_shard(self.decoder, ignored_params=own | rest)

    def compile(self, *, one_length: bool = False) -> None:
        """Compile the decoder layers, each by itself: they share the code, so one is paid.

        ``one_length``: passes are all of the same length, and a layer need not be compiled for
        every length that there may be, which takes four times as long.
        """
        for layer in self.layers:
            layer.compile(dynamic=None if one_length else True)
        self._one_length = one_length
        compile_loss()


def load_student(
    folder: Path,
    spec: TrainingSpec,
    *,
    device: torch.device | None = None,
    quantization: str | None = None,
) -> Student:
    """Load the base model from ``folder`` and put a new adapter on it, seeded by the spec.

    Args:
        folder: model folder.
        spec: what to train.
        device: where; by default what the spec says.
        quantization: of the base model; by default what the spec says.

    Raises:
        ConfigError: no GPU though asked for, a length or target that the model lacks, or the
            output layer as a target.
        ModelError: the folder's weights cannot be read, or the model's scores are more than
            a product with its output layer.
        MissingDependency: 4-bit without bitsandbytes.
    """
    device = device or device_of(spec.device)
    precision = _precision(spec, device)
    base = _load_base(folder, precision, device, quantization or spec.quantization)
    return attach(base, spec, device=device, precision=precision)


def attach(
    base: Any, spec: TrainingSpec, *, device: torch.device, precision: torch.dtype
) -> Student:
    """Put a new adapter on ``base``; see ``load_student``."""
    _check_length(base.config, spec)
    if getattr(base, "is_loaded_in_4bit", False):
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
        # That raises all other weights to float32; norms keep their own arithmetic anyway.
        for parameter in base.parameters():
            if parameter.dtype == torch.float32:
                parameter.data = parameter.data.to(precision)
    else:
        base = base.to(device)
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
    for parameter in model.parameters():
        if parameter.requires_grad:
            # Updates are far smaller than the weights; bf16 would round them away.
            parameter.data = parameter.data.to(device, torch.float32)
    base.set_attn_implementation(attention.NAME)
    student = Student(cast(PeftModel, model), device, precision)
    if student.adapts_head:
        raise ConfigError(
            f"lora_target={spec.lora_target!r} adapts the output layer, which this trainer keeps "
            "as it is; leave that name out, or take 'all-linear'."
        )
    expected = _scores(student)
    # Sharding moves each weight by itself; on a CPU there is nothing to gain.
    join = device.type == "cuda" and not spec.shard
    take_over(model, student.decoder, spec.lora_dropout, student.keys, join=join)
    _check_forward(student, expected)
    return student


def _precision(spec: TrainingSpec, device: torch.device) -> torch.dtype:
    if spec.precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if spec.precision == "bf16" else torch.float32


def _load_base(
    folder: Path, precision: torch.dtype, device: torch.device, quantization: str
) -> Any:
    options: dict[str, Any] = {"attn_implementation": attention.NAME}
    if quantization == "nf4":
        options |= {"quantization_config": nf4_config(precision), "device_map": {"": device}}
    # A worker's parent reads in its last words what became of memory or GPU.
    return load_base(folder, precision, pass_faults=True, **options)


def _check_length(config: Any, spec: TrainingSpec) -> None:
    context = getattr(config, "max_position_embeddings", None)
    if context is not None and spec.max_length > context:
        raise ConfigError(
            f"max_length={spec.max_length} is more than the {context} tokens that the model reads."
        )
    window = getattr(config, "sliding_window", None)
    used = getattr(config, "use_sliding_window", True)
    if window is not None and used and window < spec.max_length:
        raise ConfigError(
            f"The model attends to the last {window} tokens only, fewer than "
            f"max_length={spec.max_length}, which this trainer cannot do; lower max_length."
        )


@torch.no_grad()
def _scores(student: Student) -> Tensor:
    """Return what the model says about a few tokens, in float32."""
    student.model.eval()
    for module in student.model.modules():
        if type(module).__module__.startswith("bitsandbytes."):
            # On a CPU bitsandbytes repacks its weights for good at the first use in eval mode.
            module.train()
    ids = torch.arange(_CHECKED_TOKENS, device=student.device)[None]
    with _nonzero_update(student):
        return student.model(input_ids=ids, use_cache=False).logits.float()


@torch.no_grad()
def _check_forward(student: Student, expected: Tensor) -> None:
    """Compare our way through the model with that of transformers and PEFT.

    Some models scale or cap their scores after the output layer, and one may wire its
    projections otherwise than we assume.
    """
    ids = torch.arange(_CHECKED_TOKENS, device=student.device)[None]
    positions = torch.arange(_CHECKED_TOKENS, device=student.device)[None]
    nothing = torch.zeros(0, dtype=torch.long, device=student.device)
    with _nonzero_update(student):
        hidden = student.hidden(Pass(ids, positions, ids.int(), nothing, nothing, None))
        ours = student.scores(hidden).float()
    # bf16 has 3 digits: 32 random layers give 0.05. A wrong wiring is off by 0.5 and more.
    off = float((expected - ours).norm() / expected.norm())
    if not off < (1e-4 if student.precision == torch.float32 else 0.15):
        raise ModelError(
            "This model's scores are not what the trainer computes: it scales or caps them "
            "after the output layer, or its layers are wired in an unknown way. Choose another "
            "base model.",
            relative_difference=off,
        )


@contextlib.contextmanager
def _nonzero_update(student: Student) -> Iterator[None]:
    """A new adapter changes nothing, because its B matrices are zero; let them matter."""
    changed = [p for name, p in student.trainable.items() if "lora_B" in name]
    for parameter in changed:
        parameter.fill_(0.01)
    try:
        yield
    finally:
        for parameter in changed:
            parameter.zero_()
