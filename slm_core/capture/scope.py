"""The conversation and tags of the calls made inside a ``with`` block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import NamedTuple


class Scope(NamedTuple):
    """What a block says of the calls inside it."""

    conversation_id: str | None = None
    tags: Mapping[str, str] = {}


_NONE = Scope()
_current: ContextVar[Scope] = ContextVar("slm_conversation", default=_NONE)


def current_scope() -> Scope:
    """Return the scope of the innermost block; an empty one outside of any."""
    return _current.get()


@contextlib.contextmanager
def enter_scope(conversation_id: str, tags: Mapping[str, str]) -> Iterator[None]:
    """Give the block a conversation, and its tags on top of the outer ones."""
    token = _current.set(Scope(conversation_id, {**_current.get().tags, **tags}))
    try:
        yield
    finally:
        _current.reset(token)
