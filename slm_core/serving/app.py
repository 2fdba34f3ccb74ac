"""The HTTP side of a server: OpenAI's chat completions, in Azure's form too.

    POST /v1/chat/completions                              Authorization: Bearer KEY
    POST /openai/deployments/NAME/chat/completions?api-version=...     api-key: KEY
    GET  /v1/models    /v1/models/NAME    /healthz

It is built from the engine and the models that it is given, and knows no others.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from slm_core.serving.chat import Chat, Limits, Models, Refusal, json_response
from slm_core.serving.engine import Engine
from slm_core.serving.router import LiveModels
from slm_core.serving.wire_answer import error_body

log = logging.getLogger(__name__)


class Answers(Protocol):
    """What answers the requests: the models alone, or a gateway before a teacher."""

    def find(self, name: str) -> object:
        """Refuse a name that nobody answers to."""
        ...

    async def complete(self, http: HttpRequest, deployment: str | None) -> Response:
        """Answer one chat request."""
        ...


def build_app(
    engine: Engine,
    models: Models,
    limits: Limits,
    api_key: str | None,
    gateway: Answers | None = None,
    on_close: Callable[[], Awaitable[None]] | None = None,
) -> Starlette:
    """Return the ASGI app; without ``api_key`` everyone is let in."""
    chat: Answers = gateway or Chat(engine, models, limits)
    guard = _Guard(api_key)

    async def complete(request: HttpRequest) -> Response:
        guard.check(request)
        return await chat.complete(request, None)

    async def complete_azure(request: HttpRequest) -> Response:
        guard.check(request)
        if "api-version" not in request.query_params:
            raise Refusal(400, "The query parameter api-version is missing.", param="api-version")
        return await chat.complete(request, request.path_params["name"])

    async def list_models(request: HttpRequest) -> Response:
        guard.check(request)
        return json_response({"object": "list", "data": [_model(name) for name in models.names()]})

    async def show_model(request: HttpRequest) -> Response:
        guard.check(request)
        name = request.path_params["name"]
        chat.find(name)
        return json_response(_model(name))

    async def health(request: HttpRequest) -> Response:
        state = engine.health()
        body = {"status": "ok" if state.ready else "down", **state._asdict()}
        body["models"] = list(models.names())
        if isinstance(models, LiveModels):
            body["routes"] = models.stages()
        return json_response(body, 200 if state.ready else 503)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        if on_close is not None:
            await on_close()

    return Starlette(
        lifespan=lifespan,
        routes=[
            Route("/v1/chat/completions", complete, methods=["POST"]),
            Route(
                "/openai/deployments/{name:path}/chat/completions",
                complete_azure,
                methods=["POST"],
            ),
            Route("/v1/models", list_models, methods=["GET"]),
            Route("/v1/models/{name:path}", show_model, methods=["GET"]),
            Route("/healthz", health, methods=["GET"]),
        ],
        exception_handlers={Refusal: _refused, HTTPException: _no_route, Exception: _broken},
    )


class _Guard:
    def __init__(self, api_key: str | None) -> None:
        self._key = api_key.encode() if api_key is not None else None

    def check(self, request: HttpRequest) -> None:
        """Refuse a request without the key, as Bearer token or in the header ``api-key``."""
        if self._key is None:
            return
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        given = (bearer, request.headers.get("api-key", ""))
        if not any(hmac.compare_digest(key.encode(), self._key) for key in given):
            raise Refusal(
                401,
                "The API key is missing or wrong. Send it as 'Authorization: Bearer KEY' or in "
                "the header 'api-key'.",
                code="invalid_api_key",
            )


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "slm-swap"}


async def _refused(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    log.info("request refused status=%d path=%s", error.status, request.url.path)
    return json_response(error.body, error.status, error.headers)


async def _no_route(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    message = {
        404: f"There is nothing at {path}.",
        405: f"{request.method} is not allowed at {path}.",
    }.get(error.status_code, error.detail)
    return json_response(error_body(message), error.status_code, dict(error.headers or {}))


async def _broken(request: HttpRequest, error: Exception) -> Response:
    return json_response(error_body("Internal error.", kind="server_error"), 500)
