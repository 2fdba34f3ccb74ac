"""``slm ask``: one question to the adapter that is live for an agent."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slm_core.cli.opening import load_settings, opened_store
from slm_core.cli.terminal import JsonFlag, show_json
from slm_core.errors import ConfigError
from slm_core.records import Track

if TYPE_CHECKING:
    from slm_core.backends.base import Request


def ask(
    question: str,
    agent: Annotated[str, typer.Option(help="Whose live adapter.")],
    track: Annotated[Track, typer.Option(help="On which track.")],
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System prompt.")] = None,
    tools: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON list of tools, as in a request to OpenAI."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Base model, if it lies elsewhere than in training."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 512,
    as_json: JsonFlag = False,
) -> None:
    """Print the answer of the live adapter, computed in this process."""
    from slm_core.serving import ask as ask_live

    request = _read_request(question, system, tools)
    settings = load_settings()
    with opened_store(settings) as store, warnings.catch_warnings():
        # What libraries say to their programmers.
        warnings.simplefilter("ignore", FutureWarning)
        answer = ask_live(
            store,
            agent,
            track,
            request.prompt,
            request.tools,
            max_tokens=max_tokens,
            base_model=model,
            threads=settings.torch_threads,
        )
    if as_json:
        show_json({"adapter_id": answer.adapter.id, **answer.completion._asdict()})
    else:
        typer.echo(answer.completion.text)


def _read_request(question: str, system: str | None, tools: Path | None) -> Request:
    """Return the question, read as strictly as a server reads it.

    Raises:
        ConfigError: the tools cannot be read, or are not tools.
    """
    from slm_core.serving.wire_request import BadRequest, read_body

    turns = [{"role": "system", "content": system}] if system else []
    body: dict[str, Any] = {"messages": [*turns, {"role": "user", "content": question}]}
    if tools is not None:
        try:
            body["tools"] = json.loads(tools.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"The tools in {tools} cannot be read: {error}") from error
    try:
        return read_body(json.dumps(body).encode()).request()
    except BadRequest as error:
        raise ConfigError(
            f"{tools or 'The question'} cannot be put into a prompt: {error}. Tools are a list of "
            '{"type": "function", "function": {"name": ..., "parameters": {...}}}'
        ) from error
