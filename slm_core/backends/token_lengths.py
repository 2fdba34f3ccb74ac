"""How long examples are in the tokens of a base model, for datasets that leave long ones out.

It counts what training would see: the same renderer, the same prefix. Of a model on the hub only
the tokenizer is fetched.
"""

from __future__ import annotations

from collections.abc import Callable

from slm_core.backends.model_folder import is_hub_id, locate_model
from slm_core.errors import MissingDependency, ModelError
from slm_core.prompting.prefix import Variant, get_prefix
from slm_core.prompting.render import Renderer
from slm_core.records import Example


def token_counter(model: str, variant: Variant | None) -> Callable[[Example], int]:
    """Return a function that counts the tokens of an example, prompt and answer together.

    Args:
        model: folder or hub id of the base model.
        variant: context prefix that training puts ahead.

    Raises:
        MissingDependency: transformers is not installed.
        ModelError: the tokenizer cannot be had, or not be used safely.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingDependency.of_extra(
            "train", "Counting tokens needs transformers", error
        ) from error
    source = model if is_hub_id(model) else str(locate_model(model))
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ModelError(f"The tokenizer of {model} cannot be loaded: {error}") from error
    renderer = Renderer(tokenizer, get_prefix(variant))

    def count(example: Example) -> int:
        return len(renderer.example(example.prompt, example.tools, example.completion).ids)

    return count
