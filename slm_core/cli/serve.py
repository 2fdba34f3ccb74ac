"""``slm serve``: a model, or the live routes of the store, behind the OpenAI interface."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from slm_core.cli.opening import load_settings
from slm_core.cli.terminal import warn
from slm_core.prompting.prefix import Variant

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    model: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Folder or hub id of the base model; replaces the adapters' own with --routes.",
        ),
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(metavar="PATH", help="Folder of an adapter of that model.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name that callers ask for; by default the model's folder.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 8000,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Model processes; by default one per core, at most two."),
    ] = None,
    cep: Annotated[
        Literal["auto", "none", Variant],
        typer.Option(help="Context prefix; auto is the one that the adapter was trained with."),
    ] = "auto",
    routes: Annotated[
        bool, typer.Option("--routes", help="Serve the store's live adapters, as AGENT/TRACK.")
    ] = False,
) -> None:
    """Answer chat completions until Ctrl-C.

    Once ready, it writes one line of JSON with its url. Callers send SLM_SERVER_API_KEY, if set.
    """
    if model is None and not routes:
        raise typer.BadParameter("give --model PATH, or --routes to serve what is live")
    if routes and (adapter or name or cep != "auto"):
        raise typer.BadParameter("--adapter, --name and --cep come from the store with --routes")

    from slm_core.serving import ServingSpec
    from slm_core.serving import serve as run_server

    settings = load_settings(log_level="INFO")
    if settings.server_api_key is None and host not in _LOOPBACK:
        warn(f"Everyone who reaches {host} may ask: SLM_SERVER_API_KEY is not set.")
    run_server(
        ServingSpec(
            model_path=model,
            adapter_path=adapter,
            name=name,
            cep=None if cep == "none" else cep,
            routes_url=settings.database_url if routes else None,
            host=host,
            port=port,
            api_key=settings.server_api_key,
            workers=workers,
        )
    )
