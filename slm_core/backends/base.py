"""What every backend promises: ordered answers, and failures as data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from slm_core.records import Message, Tool

WINDOW_BATCHES = 8
"""A local model sorts requests by length within this many batches, so that answers come in
between. Requests of two windows never share a batch."""


class Request(NamedTuple):
    """One question. The prompt holds no CEP: the backend's renderer adds it."""

    prompt: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    native_tools: bool = True
    """HTTP only: let the server answer with native tool calls (``tool_choice: auto``);
    False asks for text (``tool_choice: none``)."""


class Completion(NamedTuple):
    """One answer, or the reason that there is none."""

    text: str
    """The answer in text; native tool calls are written in the ``toolcall`` format."""
    finish_reason: str
    """``stop``, ``length``, ``tool_calls`` or ``error``."""
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    """Time this request took; for a batch, the batch's time (what a caller waits)."""
    cost_nanousd: int | None = None
    error: str | None = None
    """Set when the backend failed on this request; ``text`` is then empty."""
    permanent: bool = False
    """With ``error``: the request itself was refused, so asking it again fails alike, and the
    backend is up."""


@runtime_checkable
class Backend(Protocol):
    """A model that can be asked."""

    @property
    def model(self) -> str:
        """Name for reports."""
        ...

    def complete(self, requests: Sequence[Request], *, max_tokens: int) -> Iterator[Completion]:
        """Yield one answer per request, in order, as they come; greedy (temperature 0).

        A request that fails yields a ``Completion`` with ``error`` set.

        Raises:
            ConfigError: every request would fail alike (wrong key, unknown model).
        """
        ...

    def close(self) -> None:
        """Free the model or the connections."""
        ...
