"""Whether a base model can be had and held, found out in seconds and before any download.

Asked in this order: the folder or the hub's cache on this machine, then the hub. All problems
are reported at once, each with the next step. What it refuses: a hub that cannot be reached, a
token that is missing, invalid or without access to a gated model, weights that are no
safetensors, too little disk, and a GPU that the training cannot fit by any plan it allows.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

from slm_core.backends.model_folder import check_hub_client, is_hub_id
from slm_core.backends.model_hub import Found, Hub, ModelAccess, alternative, gib
from slm_core.backends.model_memory import MemoryNeed, ModelShape, estimate_memory
from slm_core.errors import ConfigError, ModelError

log = logging.getLogger(__name__)

_SHARD = re.compile(r"-\d+-of-(\d+)\.safetensors$")

T = TypeVar("T")


def check_access(
    model: str,
    *,
    token: str | None = None,
    cache_dir: Path | None = None,
    need: MemoryNeed | None = None,
    endpoint: str | None = None,
    timeout_seconds: float = 8.0,
) -> ModelAccess:
    """Return what is known of ``model`` if a training can have and hold it.

    Args:
        model: path of a model folder, or a Hugging Face hub id.
        token: of the hub; by default the one that `hf auth login` left.
        cache_dir: where downloads go; by default the hub's own cache.
        need: what the training does; without it, memory is not estimated.
        endpoint: address of the hub; by default the public one, or ``HF_ENDPOINT``.
        timeout_seconds: longest wait for all that the hub is asked.

    Raises:
        ModelError: the folder does not exist or holds no whole model.
        ConfigError: with every problem, and what to do about each.
        MissingDependency: ``model`` is a hub id, and huggingface_hub is not installed.
    """
    problems: list[str] = []
    if not is_hub_id(model):
        found = _in_folder(model, Path(model).expanduser(), "folder")
    elif (snapshot := _cached(model, cache_dir)) is not None:
        found = _in_folder(model, snapshot, "cache")
    else:
        asked = Hub(model, token, cache_dir, endpoint, need is not None)
        found, problems = _within(asked.ask, timeout_seconds, asked.too_slow)
    if found is not None:
        found, too_large = _weigh(found, need)
        problems += too_large
    if problems or found is None:
        raise ConfigError(f"The base model {model} cannot be used.", problems=tuple(problems))
    log.info("base model can be used model=%s source=%s", model, found.access.source)
    return found.access


def _in_folder(model: str, folder: Path, source: Literal["folder", "cache"]) -> Found:
    if not folder.is_dir():
        raise ModelError(f"The model folder {model} does not exist; check base_model.")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights or not (folder / "config.json").is_file():
        raise ModelError(f"The model folder {folder} lacks config.json or *.safetensors.")
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except ValueError as error:
        raise ModelError(f"{folder / 'config.json'} is not JSON; fetch the model again.") from error
    size = sum(file.stat().st_size for file in weights)
    access = ModelAccess(
        model=model,
        source=source,
        parameters=sum(map(_parameters_in, weights)) or size // 2,
        weights_bytes=size,
    )
    return Found(access, config)


def _parameters_in(file: Path) -> int:
    """Return the number of values in a safetensors file, from its header."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        try:
            header = json.loads(opened.read(length)) if length < 100_000_000 else {}
        except ValueError:
            return 0
    total = 0
    for name, tensor in header.items():
        count = 1
        for side in tensor["shape"] if name != "__metadata__" else (0,):
            count *= side
        total += count
    return total


def _cached(model: str, cache_dir: Path | None) -> Path | None:
    """Return the folder of a whole copy in the hub's cache, or None."""
    check_hub_client()
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(model, cache_dir=cache_dir, local_files_only=True))
    except (OSError, ValueError):  # every error of the hub is one of the two
        return None
    weights = [file.name for file in folder.glob("*.safetensors")]
    # An interrupted download leaves some of the shards.
    shards = {int(found[1]) for name in weights if (found := _SHARD.search(name))}
    whole = all((folder / name).is_file() for name in ("config.json", "tokenizer.json"))
    return folder if whole and weights and len(weights) >= max(shards, default=1) else None


def _within(work: Callable[[], T], seconds: float, late: Callable[[], T]) -> T:
    """Return what ``work`` returns, or what ``late`` does once the time is up.

    A timeout of a request bounds each wait for bytes, not their sum, and no look-up of a name.
    """
    done: list[T] = []
    thread = threading.Thread(target=lambda: done.append(work()), daemon=True)
    thread.start()
    thread.join(seconds)
    return done[0] if done else late()


def _weigh(found: Found, need: MemoryNeed | None) -> tuple[Found, list[str]]:
    """Add the memory estimate, and say whether the smallest GPU holds it."""
    if need is None:
        return found, []
    access = found.access
    memory = estimate_memory(access.parameters, ModelShape.of(found.config), need)
    notes, problems = list(access.notes), list[str]()
    has = need.gpu_memory_bytes
    if not memory.complete:
        notes.append("the model's shape is unknown: activations are not in the estimate")
    if has is not None and memory.least > has:
        problems.append(
            f"The training needs about {gib(memory.least)} on each GPU at the very least and the "
            f"smallest has {gib(has)}. Use larger GPUs, quantization='nf4', a smaller "
            f"micro_batch or max_length, or base_model={alternative(access.model)}."
        )
    elif has is not None and memory.planned > has:
        notes.append(
            f"about {gib(memory.planned)} as planned and {gib(has)} on the GPU: expect "
            f"recomputed activations or 4-bit weights, down to {gib(memory.least)}"
        )
    update = {"memory": memory, "notes": tuple(notes)}
    return found._replace(access=access.model_copy(update=update)), problems
