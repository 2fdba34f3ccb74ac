"""Which model answers for an agent and track: the live adapter, or nobody but the teacher."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from slm_core.backends.base import Completion, Request
from slm_core.errors import RecordNotFound, SlmError
from slm_core.prompting.prefix import get_prefix
from slm_core.records import Adapter, Message, Route, Stage, Tool, Track
from slm_core.serving.messages import ModelSource, source_of

if TYPE_CHECKING:
    from slm_core.store import Store

log = logging.getLogger(__name__)


class Answer(NamedTuple):
    """What a live adapter said."""

    adapter: Adapter
    completion: Completion


class Router:
    """Looks up who is live."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def resolve(self, agent_name: str, track: Track) -> Adapter | None:
        """Return the live adapter; None when the teacher answers."""
        route = self._store.routes.live(agent_name, track)
        return self._store.adapters.get(route.adapter_id) if route else None

    def live(self) -> dict[str, Adapter]:
        """Return every live adapter by its name to callers, ``AGENT/TRACK``."""
        return {
            route_name(route): self._store.adapters.get(route.adapter_id)
            for route in self._store.routes.list()
            if route.stage is Stage.LIVE
        }


def route_name(route: Route) -> str:
    """Return the name under which a server gives out the adapter of a route."""
    return f"{route.agent_name}/{route.track}"


def ask(
    store: Store,
    agent_name: str,
    track: Track,
    prompt: Sequence[Message],
    tools: Sequence[Tool] = (),
    *,
    max_tokens: int = 512,
    base_model: str | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    threads: int | None = None,
) -> Answer:
    """Put one question to the live adapter, in this process.

    The prompt is rendered as it was in training; an adapter that would see another is
    refused. ``base_model`` replaces the adapter's own base model, for one that lies
    elsewhere on this machine.

    Raises:
        RecordNotFound: no adapter is live.
        ModelError: the adapter or its base model is not what it claims to be.
        PromptMismatch: the adapter would see another prompt than in training.
        PromptTooLong: the question does not fit the model's context.
    """
    adapter = Router(store).resolve(agent_name, track)
    if adapter is None:
        raise RecordNotFound(
            f"No adapter is live for {agent_name}/{track}; the teacher answers. Promote one first."
        )
    from slm_core.backends.local import LocalModel

    source = source_of(adapter, base_model)
    prefix = get_prefix(source.variant)
    model = LocalModel(
        source.model_path, source.adapter_path, prefix, device=device, threads=threads
    )
    try:
        stream = model.stream(Request(tuple(prompt), tuple(tools)), max_tokens)
        while True:
            try:
                next(stream)
            except StopIteration as end:
                return Answer(adapter, end.value)
    finally:
        model.close()


class FixedModels:
    """Models whose names never change."""

    def __init__(self, models: dict[str, ModelSource]) -> None:
        self._models = models

    def names(self) -> list[str]:
        """Return the names, in order."""
        return sorted(self._models)

    def find(self, name: str) -> ModelSource | None:
        """Return the model of that name, or None."""
        return self._models.get(name)


class LiveModels:
    """The live adapters of a store, followed by a thread as routes change.

    An adapter takes over only when ``load`` has proved that it can be served; until then,
    and when the store does not answer, the one before goes on answering.
    """

    def __init__(
        self,
        store: Store,
        load: Callable[[ModelSource], None],
        *,
        base_model: str | None = None,
        poll_seconds: float = 1.0,
    ) -> None:
        self._router = Router(store)
        self._load = load
        self._base_model = base_model
        self._poll_seconds = poll_seconds
        self._models: dict[str, ModelSource] = {}
        self._trouble: dict[str, str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="slm-routes", daemon=True)

    def names(self) -> list[str]:
        """Return the names, in order."""
        return sorted(self._models)

    def find(self, name: str) -> ModelSource | None:
        """Return the model of that name, or None."""
        return self._models.get(name)

    def start(self) -> None:
        """Read the routes once, then go on in a thread.

        Raises:
            StoreUnavailable: the store does not answer at the start.
        """
        self.refresh()
        self._thread.start()

    def refresh(self) -> None:
        """Bring the models up to date with the routes.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        live = self._router.live()
        models = {name: old for name, old in self._models.items() if name in live}
        for name, adapter in live.items():
            known = models.get(name)
            if known is not None and known.adapter_id == adapter.id:
                self._tell(name, "")
                continue
            try:
                source = source_of(adapter, self._base_model)
                self._load(source)
            except SlmError as error:
                self._tell(name, f"adapter {adapter.id} cannot be served: {error}")
                continue
            models[name] = source
            self._tell(name, "")
            log.info("route serves name=%s adapter=%s", name, adapter.id)
        self._models = models

    def close(self) -> None:
        """Stop following."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _follow(self) -> None:
        while not self._stop.wait(self._poll_seconds):
            try:
                self.refresh()
                self._tell("", "")
            except SlmError as error:
                self._tell("", f"the routes cannot be read: {error}")

    def _tell(self, name: str, trouble: str) -> None:
        """Log trouble when it changes, not at every look."""
        if trouble and self._trouble.get(name) != trouble:
            log.error("route unchanged name=%s reason=%s", name, trouble)
        self._trouble[name] = trouble
