"""``slm traces``: spans that were kept while Langfuse was away."""

from __future__ import annotations

import typer

from slm_core.cli.opening import load_settings, opened_store
from slm_core.cli.terminal import JsonFlag, progress, show_json, warn
from slm_core.errors import ConfigError, TracingUnavailable

app = typer.Typer(no_args_is_help=True, help="Traces of runs, for Langfuse.")


@app.command()
def push(as_json: JsonFlag = False) -> None:
    """Send the spans that Langfuse does not have yet, each once."""
    from slm_core.tracing import push_pending

    settings = load_settings()
    config = settings.langfuse()
    with opened_store(settings) as store:
        waiting = store.spans.counts()["pending"]
        if waiting and (problems := config.problems()):
            raise ConfigError(
                f"{waiting} spans wait for Langfuse, which is not set up.", problems=problems
            )
        with progress("Sending spans") as show_progress:
            result = push_pending(
                store.spans,
                config,
                folder=settings.home,
                on_progress=lambda done, _, what: show_progress(done, waiting, what),
            )
        left = store.spans.counts()["pending"]
    if not result.ok:
        raise TracingUnavailable(
            f"{len(result.sent)} spans were sent, {left} are left: {result.reason}"
        )
    if result.reason:
        warn(result.reason)
    if as_json:
        show_json({"sent": len(result.sent), "left": left})
    else:
        typer.echo(f"{len(result.sent)} spans sent, {left} left.")


@app.command()
def check() -> None:
    """Make sure that Langfuse would take the traces of a run."""
    from slm_core.tracing import check_langfuse

    config = load_settings().langfuse()
    check_langfuse(config)
    typer.echo(f"Langfuse at {config.base_url} takes traces.")
