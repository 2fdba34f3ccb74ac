"""``slm models``: whether a base model can be had and held, before anything is downloaded."""

from __future__ import annotations

from typing import Annotated

import typer

from slm_core.cli.opening import load_settings
from slm_core.cli.terminal import JsonFlag, show_facts, show_json
from slm_core.records import Gpu

app = typer.Typer(no_args_is_help=True, help="Base models.")


@app.command()
def check(
    model: Annotated[str, typer.Argument(help="Folder, hub id, or the name of a training preset.")],
    gpu_gib: Annotated[
        float | None, typer.Option(min=1, help="Memory of one GPU in GiB, to judge the estimate.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Say in seconds whether a training could use a model: access, licence, disk, GPU memory.

    A preset's name checks its model for what the preset does; otherwise LoRA in bf16 is assumed.
    """
    from slm_core.backends.model_hub import gib
    from slm_core.backends.model_memory import GIB
    from slm_core.presets import TRAIN_PRESETS
    from slm_core.training.base_model import check_base_model
    from slm_core.training.spec import TrainingSpec

    named = {str(name): plan.training for name, plan in TRAIN_PRESETS.items()}
    token = load_settings().hf_token
    found = check_base_model(
        named.get(model) or TrainingSpec(base_model=model),
        token=token.get_secret_value() if token else None,
        gpus=() if gpu_gib is None else [_gpu(int(gpu_gib * GIB))],
    )
    if as_json:
        show_json(found)
        return
    facts = {
        "model": found.model,
        "from": {"folder": "a folder", "cache": "the hub's cache here", "hub": "the hub"}[
            found.source
        ],
        "licence": (found.licence or "not named") + (", accepted" if found.gated else ""),
        "parameters": f"{found.parameters:,}",
        "weights": gib(found.weights_bytes),
        "to download": gib(found.download_bytes),
    }
    if found.free_bytes is not None:
        facts["free disk"] = gib(found.free_bytes)
    if found.memory is not None:
        facts["GPU memory, as planned"] = gib(found.memory.planned)
        facts["GPU memory, at the least"] = gib(found.memory.least)
    facts |= {f"note {number}": note for number, note in enumerate(found.notes, start=1)}
    show_facts(facts)


def _gpu(memory_bytes: int) -> Gpu:
    return Gpu(uuid="asked-for", index=0, memory_bytes=memory_bytes)
