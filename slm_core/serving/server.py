"""``slm serve``: a socket, an engine, and the app between them, until told to stop.

SIGTERM or Ctrl-C closes the door, lets answers under way finish, and ends the workers.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple

from slm_core.errors import ConfigError, MissingDependency, PromptMismatch
from slm_core.records import Stage
from slm_core.serving.exchange import Compare, Record
from slm_core.serving.messages import ModelSource, source_of
from slm_core.serving.router import FixedModels, LiveModels
from slm_core.serving.spec import ServingSpec

if TYPE_CHECKING:
    import uvicorn

    from slm_core.serving.engine import Engine

log = logging.getLogger(__name__)

_STAGES = (Stage.LIVE, Stage.CANARY, Stage.SHADOW)
"""Whom a gateway asks; without a teacher only who is live is served."""


class Address(NamedTuple):
    """Where a server listens, and what it gives out."""

    url: str
    host: str
    port: int
    models: tuple[str, ...]


def say_ready(address: Address) -> None:
    """Write one line of JSON to stdout: ``{"ready": true, "url": ..., "port": ...}``."""
    sys.stdout.write(json.dumps({"ready": True, **address._asdict()}) + "\n")
    sys.stdout.flush()


def serve(
    spec: ServingSpec,
    on_ready: Callable[[Address], None] = say_ready,
    *,
    compare: Compare | None = None,
    record: Record = lambda exchange: None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; call from the main thread.

    Args:
        spec: what to serve, and where.
        on_ready: called once, when the models are loaded and the port is open.
        compare: a gateway's judge of two answers; see ``evaluation.compare_answers``.
        record: what a gateway does with each exchange; must return at once and never raise.

    Raises:
        ConfigError: the port is taken, or the address is not of this machine.
        ModelError: a model or adapter is not what it claims to be.
        PromptMismatch: the adapter would see another prompt than in training.
        StoreUnavailable: the store of the routes does not answer.
        RecordNotFound: there is no store where the routes should be.
        BackendUnavailable: a model's worker did not start.
        MissingDependency: starlette or uvicorn is not installed.
    """
    try:
        import uvicorn

        from slm_core.serving.app import Limits, build_app
        from slm_core.serving.gateway import Gateway
        from slm_core.serving.upstream import Upstream
    except ImportError as error:
        raise MissingDependency.of_extra(
            "serve", "Serving needs starlette and uvicorn", error
        ) from error
    from slm_core.serving.engine import Engine
    from slm_core.serving.shadow import Shadows
    from slm_core.serving.tally import Tally

    with contextlib.ExitStack() as open_things:
        listener = open_things.enter_context(_listen(spec.host, spec.port))
        engine = Engine(
            workers=spec.workers,
            max_queue=spec.max_queue,
            models_per_worker=spec.models_per_worker,
            device=spec.device,
        )
        open_things.callback(engine.close)
        models = open_things.enter_context(_models(spec, engine))
        limits = Limits(spec.max_body_bytes, spec.default_max_tokens, spec.request_timeout_seconds)
        gateway = on_close = None
        if spec.teacher is not None:
            assert isinstance(models, LiveModels)
            assert compare is not None, "a gateway needs to compare answers"
            upstream = Upstream(spec.teacher, spec.request_timeout_seconds)
            on_close = upstream.close
            tally = Tally(models.store)
            open_things.callback(tally.close)
            tally.start()
            shadows = Shadows(
                engine,
                tally,
                compare,
                record,
                timeout_seconds=spec.student_timeout_seconds,
                max_queue=spec.max_shadow_queue,
            )
            open_things.callback(shadows.close)
            shadows.start()
            gateway = Gateway(
                engine,
                models,
                upstream,
                shadows,
                tally,
                record,
                limits,
                spec.student_timeout_seconds,
            )
        key = spec.api_key.get_secret_value() if spec.api_key else None
        server = uvicorn.Server(
            uvicorn.Config(
                build_app(engine, models, limits, key, gateway, on_close),
                loop="asyncio",
                http="h11",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=round(spec.shutdown_seconds),
            )
        )
        open_things.enter_context(_stopping_on_signals(server))
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        on_ready(Address(f"http://{shown}:{port}", host, port, tuple(models.names())))
        log.info("serving host=%s port=%d models=%s", host, port, models.names())
        server.run([listener])
    log.info("server stopped")


def _listen(host: str, port: int) -> socket.socket:
    """Open the port before any model is loaded: a taken one shows at once."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"{host} is not an address to listen on: {error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(128)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"Port {port} of {host} is in use; stop what uses it, or choose another (0 takes "
                "a free one)."
            ) from error
        raise ConfigError(f"Cannot listen on port {port} of {host}: {error}") from error
    return listener


@contextlib.contextmanager
def _models(spec: ServingSpec, engine: Engine) -> Iterator[FixedModels | LiveModels]:
    """Start the engine with the models that the spec names."""
    if spec.routes_url is None:
        name, source = _fixed(spec)
        engine.start([source])
        yield FixedModels({name: source})
        return
    from slm_core.store import open_store

    with open_store(spec.routes_url, create=False) as store:
        engine.start([])
        models = LiveModels(
            store,
            lambda source: engine.load(source, spec.load_timeout_seconds),
            base_model=spec.model_path,
            stages=_STAGES if spec.teacher is not None else (Stage.LIVE,),
            keep=engine.keep,
        )
        try:
            models.start()
            yield models
        finally:
            models.close()


def _fixed(spec: ServingSpec) -> tuple[str, ModelSource]:
    assert spec.model_path is not None
    name = spec.name or Path(spec.model_path).name
    if spec.adapter_path is None:
        variant = None if spec.cep == "auto" else spec.cep
        return name, ModelSource(spec.model_path, variant=variant)
    from slm_core.backends.adapter_folder import read_adapter

    folder = Path(spec.adapter_path)
    # Where the folder lies now, not where it was made.
    adapter = read_adapter(folder).model_copy(update={"path": str(folder)})
    source = source_of(adapter, spec.model_path)
    if spec.cep != "auto" and spec.cep != source.variant:
        raise PromptMismatch(
            f"Adapter {adapter.id} was trained with the context prefix "
            f"{source.variant or 'none'}, not {spec.cep or 'none'}; leave cep at auto."
        )
    return name, source


@contextlib.contextmanager
def _stopping_on_signals(server: uvicorn.Server) -> Iterator[None]:
    """Let signals that come before or after the server's own handling stop it gently too."""

    def stop(number: int, frame: FrameType | None) -> None:
        server.should_exit = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
