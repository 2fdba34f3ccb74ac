"""``slm adapters merge`` and ``push``: an adapter leaves for servers and for the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from slm_core.cli.opening import load_settings, opened_store
from slm_core.cli.terminal import JsonFlag, show_facts, show_json, warn
from slm_core.errors import ConfigError, RecordNotFound
from slm_core.records import Adapter, Dataset

if TYPE_CHECKING:
    from slm_core.store import Store


def merge(
    adapter_id: str,
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(help="Of the merged weights; auto keeps the base model's."),
    ] = "auto",
    from_4bit: Annotated[
        bool | None,
        typer.Option(
            "--from-4bit/--from-full",
            help="Merge into the base model's 4-bit or full weights; by default those that the "
            "adapter was trained on.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Folder of the base model, if it lies elsewhere here.")
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.")
    ] = "cpu",
    force: Annotated[
        bool, typer.Option("--force", help="Publish even if it answers otherwise than before.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Make one model of an adapter and its base model.

    The result is compared with base and adapter, on prompts and on rows of the adapter's
    dataset where that is still here; beyond the limits nothing is written.
    """
    from slm_core.training.merge import merge_adapter

    settings = load_settings()
    with opened_store(settings) as store:
        adapter = store.adapters.get(adapter_id)
        dataset = _dataset(store, adapter)
    here = Path(dataset.path) if dataset and Path(dataset.path).is_dir() else None
    if here is None:
        warn(f"{adapter.dataset_id} is not here; the comparison is on prompts only.")
    merged = merge_adapter(
        adapter.path,
        model or adapter.base_model,
        out,
        dtype=dtype,
        quantized=from_4bit,
        force=force,
        dataset_path=here,
        device=device,
        threads=settings.torch_threads,
    )
    for problem in merged.check.problems():
        warn(f"Published by force: {problem}.")
    if as_json:
        show_json(merged)
        return
    check = merged.check
    show_facts(
        {
            "merged": merged.path,
            "dtype": merged.dtype,
            "into": "4-bit weights, unpacked" if merged.merged_into_nf4 else "full weights",
            "same most likely token": f"{check.equal_tokens:.2%} of {check.positions:,}",
            "difference of scores": f"{check.mean_difference:.3g} on average, "
            f"{check.max_difference:.3g} at most",
            "perplexity": "no rows to measure it on"
            if check.perplexity_before is None or check.perplexity_after is None
            else f"{check.perplexity_before:.4f} before, {check.perplexity_after:.4f} after",
        }
    )


def push(
    adapter_id: str,
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the hub; made if absent.")],
    public: Annotated[bool, typer.Option("--public", help="Let anybody read it.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask back.")] = False,
    base_model: Annotated[
        str | None, typer.Option(help="Hub id of the base model, where the record has a path.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help="Licence of the base model, if its folder does not say.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Upload an adapter with its card to the Hugging Face hub, private unless told otherwise.

    Weights, settings, record and card are all that is sent: no data, no paths.
    """
    from slm_core.training.card import adapter_card, licence_of, public_name
    from slm_core.training.hub import public_record, push_adapter

    settings = load_settings()
    if settings.hf_token is None:
        raise ConfigError("The hub asks who you are.", problems=("HF_TOKEN is not set",))
    with opened_store(settings) as store:
        adapter = store.adapters.get(adapter_id)
        dataset = _dataset(store, adapter)
        decisions = store.decisions.of_adapter(adapter_id)
        evaluations = [one for one in store.evaluations.list() if one.adapter_id == adapter_id]
    if public and not yes:
        typer.confirm(f"Anybody will be able to read {adapter_id} in {repo}. Go on?", abort=True)
    folder = Path(adapter.path)
    if base_model is None and public_name(adapter.base_model) != adapter.base_model:
        warn(
            f"The card names the base model {public_name(adapter.base_model)!r}, from a path; "
            "give its hub id with --base-model."
        )
    card = adapter_card(
        public_record(adapter, base_model),
        base_licence=licence or licence_of(Path(adapter.base_model)),
        rank=_rank(folder),
        dataset=dataset,
        evaluations=evaluations[-1:],
        decisions=decisions[-1:],
        repo=repo,
    )
    pushed = push_adapter(
        folder,
        repo,
        card=card,
        token=settings.hf_token.get_secret_value(),
        public=public,
        base_model=base_model,
    )
    if as_json:
        show_json(pushed._asdict())
    else:
        kind = "private" if pushed.private else "public"
        typer.echo(f"{adapter_id} is in {pushed.repo} ({kind}): {pushed.url}")


def _dataset(store: Store, adapter: Adapter) -> Dataset | None:
    try:
        return store.datasets.get(adapter.dataset_id)
    except RecordNotFound:
        return None


def _rank(folder: Path) -> int | None:
    file = folder / "adapter_config.json"
    return int(json.loads(file.read_text("utf-8"))["r"]) if file.is_file() else None
