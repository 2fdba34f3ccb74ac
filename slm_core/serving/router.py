"""Which model answers for an agent and track: the live adapter, or nobody but the teacher."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Literal, NamedTuple

from slm_core.backends.base import Completion, Request
from slm_core.errors import RecordNotFound, StoreUnavailable
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


class Lane(NamedTuple):
    """A route, and how to load the adapter that it leads to."""

    route: Route
    source: ModelSource


class LiveModels:
    """The adapters of a store's routes, followed by a thread as the routes change.

    An adapter takes over only when ``load`` has proved that it can be served; until then,
    and when the store does not answer, the live one before goes on answering.
    """

    def __init__(
        self,
        store: Store,
        load: Callable[[ModelSource], None],
        *,
        base_model: str | None = None,
        stages: Sequence[Stage] = (Stage.LIVE,),
        keep: Callable[[Sequence[ModelSource]], None] = lambda sources: None,
        poll_seconds: float = 1.0,
    ) -> None:
        self.store = store
        self._load = load
        self._base_model = base_model
        self._stages = stages
        self._keep = keep
        self._poll_seconds = poll_seconds
        self._lanes: dict[tuple[str, Stage], Lane] = {}
        self._trouble: dict[str, str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="slm-routes", daemon=True)

    def names(self) -> list[str]:
        """Return the names, in order."""
        return sorted({name for name, _ in self._lanes})

    def find(self, name: str) -> ModelSource | None:
        """Return the live model of that name, or None."""
        lane = self.lane(name, Stage.LIVE)
        return lane.source if lane else None

    def lane(self, name: str, stage: Stage) -> Lane | None:
        """Return who is at that stage; the newest if several are, None if nobody is."""
        return self._lanes.get((name, stage))

    def stages(self) -> dict[str, list[Stage]]:
        """Return every name with the stages at which there is an adapter."""
        return {
            name: [s for s in self._stages if (name, s) in self._lanes] for name in self.names()
        }

    def start(self) -> None:
        """Read the routes once, then go on in a thread.

        Raises:
            StoreUnavailable: the store does not answer at the start.
        """
        self.refresh()
        self._thread.start()

    def refresh(self) -> None:
        """Bring the models up to date with the routes; return when each was proved or refused.

        Loading one may take minutes, so whatever needs no loading changes first, and the routes
        are read again after each.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        proved = {lane.route.adapter_id: lane.source for lane in self._lanes.values()}
        refused: set[str] = set()
        while not self._stop.is_set():
            new = self._publish(proved, refused)
            if new is None:
                return
            source = self._prove(route_name(new), new)
            if source is None:
                refused.add(new.adapter_id)
            else:
                proved[new.adapter_id] = source

    def _publish(self, proved: Mapping[str, ModelSource], refused: Set[str]) -> Route | None:
        """Follow the routes as far as adapters are proved; return one whose adapter is new."""
        routes = sorted(self.store.routes.list(), key=lambda route: route.updated_at)
        wanted = {(route_name(r), r.stage): r for r in routes if r.stage in self._stages}
        in_order = sorted(wanted, key=lambda key: self._stages.index(key[1]))
        lanes: dict[tuple[str, Stage], Lane] = {}
        new: Route | None = None
        for key in in_order:
            route = wanted[key]
            if (source := proved.get(route.adapter_id)) is not None:
                lanes[key] = Lane(route, source)
                continue
            if route.stage is Stage.LIVE and (before := self._lanes.get(key)):
                lanes[key] = before
            if new is None and route.adapter_id not in refused:
                new = route
        self._lanes = lanes
        self._keep(list(dict.fromkeys(lane.source for lane in lanes.values())))
        return new

    def _prove(self, name: str, route: Route) -> ModelSource | None:
        """Return how to load an adapter that has not been served yet; None if it cannot be."""
        try:
            adapter = self.store.adapters.get(route.adapter_id)
            source = source_of(adapter, self._base_model)
            self._load(source)
        except StoreUnavailable:
            raise
        except Exception as error:
            self._tell(name, f"adapter {route.adapter_id} cannot be served: {error}")
            return None
        self._tell(name, "")
        log.info("route serves name=%s stage=%s adapter=%s", name, route.stage, route.adapter_id)
        return source

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
            except Exception as error:
                # A thread that ends would leave the traffic where it is, roll-backs or not: a
                # newer version may have written records that this one cannot read.
                self._tell("", f"the routes cannot be read: {error}")

    def _tell(self, name: str, trouble: str) -> None:
        """Log trouble when it changes, not at every look."""
        if trouble and self._trouble.get(name) != trouble:
            log.error("route unchanged name=%s reason=%s", name, trouble)
        self._trouble[name] = trouble
