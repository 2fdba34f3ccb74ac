"""How a base model is kept in 4 bits. Training and merging must agree on every detail."""

from __future__ import annotations

from typing import Any

import torch

from slm_core.errors import MissingDependency


def nf4_config(precision: torch.dtype) -> Any:
    """Return the quantization that transformers applies while it loads a model.

    Raises:
        MissingDependency: bitsandbytes is not installed.
    """
    try:
        import bitsandbytes  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingDependency.of_extra(
            "train", "4-bit weights (NF4) need bitsandbytes", error
        ) from error
    from transformers import BitsAndBytesConfig

    # Without double quantization: it would save 0.4 bits a weight and cost a second unpacking.
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=precision,
        bnb_4bit_use_double_quant=False,
    )
