"""Count the weights that training's FLOPs follow from. Works on a loaded model."""

from __future__ import annotations

from typing import Any

from torch import nn

from slm_core.training.throughput import ModelShape


def shape_of(model: nn.Module) -> ModelShape:
    """Return the shape of a causal language model, with or without a LoRA adapter on it.

    Linear layers are counted by their sizes, so that weights packed into 4 bits count whole.
    Mixtures of experts are counted with all experts, which is too much for them.
    """
    loaded: Any = model
    base: Any = loaded.get_base_model() if hasattr(loaded, "get_base_model") else model
    output = base.get_output_embeddings()
    heads = (output, getattr(output, "base_layer", None))
    body = head = lora = 0
    for name, module in base.named_modules():
        if not isinstance(module, nn.Linear):  # the layers of bitsandbytes are, too
            continue
        size = module.in_features * module.out_features
        if ".lora_" in f".{name}":
            lora += size
        elif any(module is one for one in heads):
            head += size
        else:
            body += size
    config = base.config.get_text_config()
    count = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // count
    return ModelShape(body, head, lora, config.num_hidden_layers, count * width)
