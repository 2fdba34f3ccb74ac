"""``slm serve``: a model, the live routes of the store, or a gateway, in OpenAI's form."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from slm_core.cli.opening import load_settings
from slm_core.cli.terminal import warn
from slm_core.prompting.prefix import Variant

if TYPE_CHECKING:
    from slm_core.serving import TeacherSpec
    from slm_core.serving.exchange import Exchange, Record
    from slm_core.settings import Settings

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
    gateway: Annotated[
        bool,
        typer.Option(
            "--gateway", help="Serve AGENT/TRACK by whoever's turn it is: teacher or adapter."
        ),
    ] = False,
    student_timeout: Annotated[
        float,
        typer.Option(
            min=0.1,
            metavar="SECONDS",
            help="With --gateway: how long an adapter may take before the teacher is asked.",
        ),
    ] = 10.0,
    capture: Annotated[
        bool,
        typer.Option(help="With --gateway: capture every answer; off if your clients do."),
    ] = True,
) -> None:
    """Answer chat completions until Ctrl-C.

    Once ready, it writes one line of JSON with its url. Callers send SLM_SERVER_API_KEY, if set.
    """
    routes = routes or gateway
    if model is None and not routes:
        raise typer.BadParameter(
            "give --model PATH, --routes to serve what is live, or --gateway to shift traffic"
        )
    if routes and (adapter or name or cep != "auto"):
        raise typer.BadParameter("--adapter, --name and --cep come from the store with --routes")

    from slm_core.serving import ServingSpec
    from slm_core.serving import serve as run_server

    settings = load_settings(log_level="INFO")
    if settings.server_api_key is None and host not in _LOOPBACK:
        warn(f"Everyone who reaches {host} may ask: SLM_SERVER_API_KEY is not set.")
    spec = ServingSpec(
        model_path=model,
        adapter_path=adapter,
        name=name,
        cep=None if cep == "none" else cep,
        routes_url=settings.database_url if routes else None,
        teacher=_teacher(settings) if gateway else None,
        student_timeout_seconds=student_timeout,
        host=host,
        port=port,
        api_key=settings.server_api_key,
        workers=workers,
    )
    if not gateway:
        run_server(spec)
        return
    from slm_core.evaluation import compare_answers

    with _recording(settings, everything=capture) as record:
        run_server(spec, compare=compare_answers, record=record)


def _teacher(settings: Settings) -> TeacherSpec:
    from slm_core.serving import TeacherSpec

    return TeacherSpec(**settings.teacher()._asdict())


@contextlib.contextmanager
def _recording(settings: Settings, *, everything: bool) -> Iterator[Record]:
    """Yield what leaves exchanges in the capture spool; without ``everything`` only shadows."""
    from slm_core.capture import WorkflowTracer

    with WorkflowTracer(spool_dir=settings.spool_dir, database_url=settings.database_url) as tracer:

        def record(exchange: Exchange) -> None:
            if not everything and "shadow" not in exchange.tags:
                return
            question = exchange.question
            tracer.capture_call(
                agent_type="gateway",
                agent_name=question.agent_name,
                model_used=exchange.model,
                messages=question.messages,
                tools=question.tools,
                assistant_response=exchange.message.get("content"),
                tool_calls=exchange.message.get("tool_calls") or (),
                track=question.track,
                conversation_id=question.conversation_id,
                finish_reason=exchange.finish_reason,
                source=exchange.source,
                prompt_tokens=exchange.prompt_tokens,
                completion_tokens=exchange.completion_tokens,
                execution_time=exchange.seconds,
                tags=exchange.tags,
            )

        yield record
