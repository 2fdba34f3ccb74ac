"""Attaches a tracer to an OpenAI client, of any of its four forms.

Every way to a chat completion in that library ends in ``client.post("/chat/completions")``, a
documented method, and every resource takes it from its client. So the wrapped client is a
copy with another ``post``. Whether the resources really took it is checked at once: a wrapper
that captures nothing must not look attached.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import weakref
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

from slm_core.capture.recording import Recording
from slm_core.capture.streams import TracedAsyncStream, TracedStream
from slm_core.errors import CaptureError

Client = TypeVar("Client")
Begin = Callable[[Mapping[str, Any]], Recording | None]
"""Begins the recording of a request body; None when that failed."""

_PATH = "/chat/completions"
_inside: ContextVar[bool] = ContextVar("slm_inside_captured_call", default=False)
"""A client wrapped twice captures once, by its outermost wrapper."""


def attach(client: Client, begin: Begin, *, ask_usage: bool) -> Client:
    """Return a client like ``client`` whose chat completions are recorded.

    ``ask_usage`` has streams end with their token counts, unseen by the application.

    Raises:
        CaptureError: ``client`` is not such a client, or its library works in another way.
    """
    try:
        traced: Any = copy.copy(client)
        own = vars(traced)
        # Resources made so far belong to the client as it was.
        for name in [n for n in own if isinstance(getattr(type(client), n, None), cached_property)]:
            del own[name]
        plain_copy = traced.copy
        own["post"] = _traced_post(traced.post, begin, ask_usage)
        is_attached = traced.chat.completions._post is own["post"]
    except (AttributeError, TypeError) as error:
        raise CaptureError(
            f"A {type(client).__name__} cannot be wrapped: it lacks what a client of the OpenAI "
            "library has. Wrap OpenAI, AzureOpenAI or their async forms, or call capture_call."
        ) from error
    if not is_attached:
        raise CaptureError(
            f"{type(client).__name__} does not send its chat completions through client.post, so "
            "nothing would be captured. Install another version of its library, or call "
            "capture_call."
        )

    def copied(*arguments: Any, **options: Any) -> Any:
        return attach(plain_copy(*arguments, **options), begin, ask_usage=ask_usage)

    own["copy"] = own["with_options"] = copied
    return traced


def _traced_post(post: Callable[..., Any], begin: Begin, ask_usage: bool) -> Callable[..., Any]:
    """Return ``post`` with a recording around every chat completion."""

    def traced_post(path: str, **arguments: Any) -> Any:
        exchange = _begin(path, arguments, begin, ask_usage)
        if exchange is None:
            return post(path, **arguments)
        token = _inside.set(True)
        try:
            result = post(path, **exchange.arguments)
        except BaseException as error:
            exchange.recording.finish(error)
            raise
        finally:
            _inside.reset(token)
        return exchange.pass_on(result, TracedStream)

    async def traced_post_async(path: str, **arguments: Any) -> Any:
        exchange = _begin(path, arguments, begin, ask_usage)
        if exchange is None:
            return await post(path, **arguments)
        token = _inside.set(True)
        try:
            result = await post(path, **exchange.arguments)
        except BaseException as error:
            exchange.recording.finish(error)
            raise
        finally:
            _inside.reset(token)
        return exchange.pass_on(result, TracedAsyncStream)

    return traced_post_async if inspect.iscoroutinefunction(post) else traced_post


class _Exchange(NamedTuple):
    """One request with its recording."""

    recording: Recording
    arguments: dict[str, Any]
    """Of ``post``."""
    hide_usage: bool
    """The token counts at the end of the stream were asked for by us alone."""

    def pass_on(self, result: Any, stream_type: Callable[..., Any]) -> Any:
        """Return what the application gets for ``result``."""
        if hasattr(result, "http_response"):
            return self._tap(result, stream_type)
        if self.arguments.get("stream"):
            return stream_type(result, self.recording, hide_usage=self.hide_usage)
        self.recording.answer(result)
        return result

    def _tap(self, raw: Any, stream_type: Callable[..., Any]) -> Any:
        """Listen to ``raw``, a response of ``with_raw_response`` or ``with_streaming_response``.

        Its body becomes an answer when somebody parses it; one that nobody parses is recorded
        without text when the response dies.
        """
        parse = raw.parse
        self.recording.note_answered()
        dropped = weakref.finalize(raw, self.recording.finish)
        dropped.atexit = False

        def parsed(*arguments: Any, **options: Any) -> Any:
            dropped.detach()
            try:
                value = parse(*arguments, **options)
            except BaseException as error:
                self.recording.finish(error)
                raise
            return self.pass_on(value, stream_type)

        async def parsed_async(*arguments: Any, **options: Any) -> Any:
            dropped.detach()
            try:
                value = await parse(*arguments, **options)
            except BaseException as error:
                self.recording.finish(error)
                raise
            return self.pass_on(value, stream_type)

        raw.parse = parsed_async if inspect.iscoroutinefunction(parse) else parsed
        if raw.http_response.is_closed:  # the whole body is here
            with contextlib.suppress(Exception):  # the application meets it when it parses
                raw.parse()
        return raw


def _begin(path: str, arguments: dict[str, Any], begin: Begin, ask_usage: bool) -> _Exchange | None:
    """Begin the recording of a chat completion; None when this is not one to record."""
    body = arguments.get("body")
    if not path.endswith(_PATH) or not isinstance(body, Mapping) or _inside.get():
        return None
    extra = arguments.get("options", {}).get("extra_json") or {}
    sent = {**body, **extra}
    recording = begin(sent)
    if recording is None:
        return None
    options = sent.get("stream_options") or {}
    if not (ask_usage and arguments.get("stream")) or "include_usage" in options:
        return _Exchange(recording, arguments, hide_usage=False)
    asking = {**body, "stream_options": {**options, "include_usage": True}}
    return _Exchange(recording, {**arguments, "body": asking}, hide_usage=True)
