"""The provider's streams, passed on chunk by chunk while a recording listens.

A stream can end in ten ways; each of them reaches ``Recording.finish``. Breaking out of a loop
is not an end by itself, since iteration may go on later: the end is when the stream is closed
or nobody holds it any more.
"""

from __future__ import annotations

import weakref
from typing import Any, Self

from slm_core.capture.recording import Recording


class _Traced:
    """What both kinds of stream share: everything else is the provider's own stream."""

    def __init__(self, stream: Any, recording: Recording, *, hide_usage: bool) -> None:
        self._stream = stream
        self._recording = recording
        self._hide_usage = hide_usage
        recording.note_answered()
        # Not at exit: by then the tracer has closed what is open.
        weakref.finalize(self, recording.finish).atexit = False

    @property
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The provider's class, so that ``isinstance`` tells applications the same as before."""
        return type(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class TracedStream(_Traced):
    """A stream of chunks."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        try:
            chunk = next(self._stream)
            while self._recording.take(chunk) and self._hide_usage:
                chunk = next(self._stream)
        except StopIteration:
            self._recording.finish()
            raise
        except BaseException as error:
            self._recording.finish(error)
            raise
        return chunk

    def __enter__(self) -> Self:
        self._stream.__enter__()
        return self

    def __exit__(self, *problem: Any) -> None:
        try:
            self._stream.__exit__(*problem)
        finally:
            self._recording.finish()

    def close(self) -> None:
        """Close the stream; the call is recorded as far as it has come."""
        try:
            self._stream.close()
        finally:
            self._recording.finish()


class TracedAsyncStream(_Traced):
    """An asynchronous stream of chunks."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        try:
            chunk = await self._stream.__anext__()
            while self._recording.take(chunk) and self._hide_usage:
                chunk = await self._stream.__anext__()
        except StopAsyncIteration:
            self._recording.finish()
            raise
        except BaseException as error:
            self._recording.finish(error)
            raise
        return chunk

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *problem: Any) -> None:
        try:
            await self._stream.__aexit__(*problem)
        finally:
            self._recording.finish()

    async def close(self) -> None:
        """Close the stream; the call is recorded as far as it has come."""
        try:
            await self._stream.close()
        finally:
            self._recording.finish()

    aclose = close
