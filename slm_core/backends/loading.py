"""Load a base model and its tokenizer from a folder, for everyone who does. Imports torch.

Serving, scoring, training and merging must refuse the same folders. What it refuses: files
that cannot be read, and weights that lack a tensor, which transformers would fill with random
numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from slm_core.errors import ConfigError, ModelError


def device_of(wanted: str) -> torch.device:
    """Return the device that ``wanted`` names; ``auto`` takes a GPU when there is one.

    Raises:
        ConfigError: a GPU is asked for, and torch sees none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device='cuda', but torch sees no GPU; use device='auto' or 'cpu'.")
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(wanted)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model folder.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(f"The tokenizer in {folder} cannot be loaded: {error}") from error


def load_base(
    folder: Path, dtype: torch.dtype | str, *, pass_faults: bool = False, **options: Any
) -> Any:
    """Return the base model in ``folder``, ready to answer.

    Args:
        folder: model folder.
        dtype: of the weights; ``auto`` takes what the folder says.
        pass_faults: let a RuntimeError of torch through as it is, for callers who tell faults
            of memory and GPU by it.
        options: further ones of ``from_pretrained``, such as the quantization.

    Raises:
        ModelError: the weights cannot be read, or lack some of the model's tensors.
    """
    disable_progress_bar()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True, **options
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if pass_faults and isinstance(error, RuntimeError):
            raise
        raise ModelError(f"The model in {folder} cannot be loaded: {error}") from error
    network, loading = loaded
    # Tied weights are not among them, nor what a quantization adds.
    if missing := sorted(loading["missing_keys"]):
        # transformers would go on with random numbers in their place.
        raise ModelError(
            f"The weights in {folder} lack some of the model's tensors; fetch the model again.",
            missing=missing,
        )
    return network
