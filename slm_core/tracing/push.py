"""Send kept spans and their scores to Langfuse, each once.

Langfuse does not remove duplicates, and it accepts spans before it shows them. So each push
first reads back which of a trace's spans are there already and sends only the others. If the
outcome of a request is unknown, it reads back until ``confirm_seconds`` have passed; spans it
then still cannot see stay unsent, for a later push to look again. A span counts as sent when
Langfuse acknowledged it (2xx) or shows it.

The scores of a trace go before its spans. Langfuse takes a score of a span that it does not
know yet, and taking one again updates it, so scores may be repeated and spans may not. Thus
nothing can fail between Langfuse taking the spans and the outbox knowing of it, and no second
record of what is half sent is needed.

Of all pushes that name the same folder one works at a time, in whatever process; the others
leave their spans where they are.

What remains: a push that dies between Langfuse taking spans and the outbox marking them, or a
server that shows spans only after ``confirm_seconds``, and another push before it does, make
a duplicate. A trace whose spans Langfuse refuses for good has scores without spans there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from slm_core.errors import TracingUnavailable
from slm_core.system.locks import try_lock
from slm_core.tracing.config import LangfuseConfig

if TYPE_CHECKING:
    from slm_core.tracing.server import LangfuseServer

log = logging.getLogger(__name__)

READ_BACK_EVERY_SECONDS = 2.0
SPANS_PER_REQUEST = 256
LOCK_NAME = "spans.lock"
"""The file in the shared folder that the working push holds."""
REFUSED_CONTENT = (400, 413)
"""Statuses that concern one request, not the server: the next trace may still be taken."""


class PushResult(NamedTuple):
    """Ids of the spans that are in Langfuse now, and of those that are not."""

    sent: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    reason: str = ""
    """Why some failed, or what else went wrong; empty when nothing did."""

    @property
    def ok(self) -> bool:
        """Whether nothing is left to send."""
        return not self.failed


class SpanOutbox(Protocol):
    """Kept spans and whether they were sent. The store's ``spans`` is one."""

    def pending(self, limit: int) -> Sequence[Mapping[str, Any]]:
        """Return up to ``limit`` spans that were not sent, oldest first."""
        ...

    def mark_sent(self, ids: Sequence[str]) -> object:
        """Remember that these spans are in Langfuse."""
        ...


def check_langfuse(config: LangfuseConfig) -> None:
    """Pass when a run's spans can be delivered; the preflight of SLM_REQUIRE_LANGFUSE=1.

    The package's own ``auth_check`` is not enough: without keys it is silently off, and
    reading projects says nothing about sending. An empty batch goes the whole way here.

    Raises:
        TracingUnavailable: what is missing, refused or down, and what to set.
    """
    if problems := config.problems():
        raise TracingUnavailable(
            "Langfuse is required but not usable: " + "; ".join(problems) + ". Set these, or unset "
            "SLM_REQUIRE_LANGFUSE to keep the spans in the store and send them later."
        )
    from slm_core.tracing.server import LangfuseServer

    with LangfuseServer(config) as server:
        server.check()


def push_pending(
    outbox: SpanOutbox,
    config: LangfuseConfig,
    *,
    folder: Path | None = None,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> PushResult:
    """Send all spans that ``outbox`` still holds; stop at the first failure.

    While another push of the same ``folder`` is at work this one sends nothing and says so:
    both would send the same spans. The other, or the next push, sends them.

    Args:
        outbox: Where the spans are kept.
        config: Where they go.
        folder: One that all who push from this outbox share; its lock lets one of them work.
            None when nobody else pushes from this outbox.
        on_progress: Called with (sent so far, found so far, what).
    """
    with _turn(folder) as obstacle:
        if obstacle:
            left = tuple(span["id"] for span in outbox.pending(SPANS_PER_REQUEST))
            return PushResult((), left, obstacle if left else "")
        return _push_all(outbox, config, on_progress)


def _push_all(
    outbox: SpanOutbox,
    config: LangfuseConfig,
    on_progress: Callable[[int, int, str], None] | None,
) -> PushResult:
    sent: list[str] = []
    reasons: list[str] = []
    failed: tuple[str, ...] = ()
    while not failed and (spans := outbox.pending(SPANS_PER_REQUEST)):
        result = push(spans, config, on_sent=outbox.mark_sent)
        sent += result.sent
        failed = result.failed
        reasons += [result.reason] if result.reason else []
        if on_progress is not None:
            on_progress(len(sent), len(sent) + len(failed), "spans sent")
    return PushResult(tuple(sent), failed, "; ".join(reasons))


def push(
    spans: Iterable[Mapping[str, Any]],
    config: LangfuseConfig,
    *,
    on_sent: Callable[[Sequence[str]], object] | None = None,
) -> PushResult:
    """Send ``spans`` to Langfuse; never raises for what Langfuse or the network does.

    Args:
        spans: As a ``RunTrace`` gave them to its sink.
        config: Where they go.
        on_sent: Called with the ids of each request's spans once Langfuse has them, before
            the next request: what it remembers survives a push that is killed.

    Returns:
        Which spans are there now. Mark ``sent``; keep ``failed`` and push them again later.
    """
    waiting = [dict(span) for span in spans]
    if problems := config.problems():
        return PushResult((), tuple(span["id"] for span in waiting), "; ".join(problems))
    if not waiting:
        return PushResult()

    from slm_core.tracing.server import LangfuseServer

    sent: list[str] = []
    reasons: list[str] = []
    with LangfuseServer(config) as server:
        for batch in _batches(waiting):
            try:
                reasons += _send(server, batch, config)
            except TracingUnavailable as error:
                reasons.append(error.message)
                if error.context.get("status") not in REFUSED_CONTENT:
                    break
            else:
                ids = [span["id"] for span in batch]
                sent += ids
                if on_sent is not None:
                    on_sent(ids)
    failed = tuple(span["id"] for span in waiting if span["id"] not in sent)
    log.info("spans sent count=%d", len(sent))
    if failed:
        log.warning("spans not sent count=%d reason=%s", len(failed), reasons[-1])
    return PushResult(tuple(sent), failed, "; ".join(reasons))


@contextlib.contextmanager
def _turn(folder: Path | None) -> Iterator[str]:
    """Yield why this push may not work now; an empty text while it is the only one."""
    if folder is None:
        yield ""
        return
    path = folder / LOCK_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        # Not raised: a run that did its work does not fail over its trace.
        yield f"{path} cannot be locked ({error.strerror}), so nothing was sent"
        return
    try:
        yield _why_locked(handle, path)
    finally:
        os.close(handle)


def _why_locked(handle: int, path: Path) -> str:
    try:
        if try_lock(handle):
            return ""
    except OSError as error:  # a file system without locks
        return f"{path} cannot be locked ({error.strerror}), so nothing was sent"
    return f"another push, which holds {path}, is sending spans now; these are left to it"


def _send(server: LangfuseServer, batch: list[dict[str, Any]], config: LangfuseConfig) -> list[str]:
    """Return once Langfuse has the scores and every span of ``batch``, all of one trace.

    Returns:
        Which scores it refused for good, in words.
    """
    from slm_core.tracing.delivery import send

    arrived = server.span_ids(batch[0]["trace_id"]) or frozenset()
    # Before the spans: whatever fails here may be done again, and sending spans may not.
    notes = server.add_scores(batch)
    missing = [span for span in batch if span["id"] not in arrived]
    if not missing:
        return notes
    outcome = send(missing, config)
    if outcome.state == "accepted":
        return notes
    sentence = f"Langfuse at {config.base_url} did not take {len(missing)} spans: {outcome.reason}."
    if outcome.state == "unknown":
        if _shows_up(server, missing, config.confirm_seconds):
            return notes
        sentence += " They may have arrived all the same, so they were not sent twice."
    raise TracingUnavailable(
        f"{sentence} They are kept; push them again later.", status=outcome.status
    )


def _shows_up(server: LangfuseServer, spans: list[dict[str, Any]], wait_seconds: float) -> bool:
    """Read back until Langfuse shows all ``spans`` or the time is over."""
    wanted = {span["id"] for span in spans}
    give_up = time.monotonic() + wait_seconds
    while True:
        with contextlib.suppress(TracingUnavailable):
            shown = server.span_ids(spans[0]["trace_id"])
            if shown is None:
                return False  # this server cannot be asked
            if wanted <= shown:
                return True
        if time.monotonic() + READ_BACK_EVERY_SECONDS > give_up:
            return False
        time.sleep(READ_BACK_EVERY_SECONDS)


def _batches(spans: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield the spans by trace, traces in the order of their first span."""
    by_trace: dict[str, list[dict[str, Any]]] = {}
    for span in spans:
        by_trace.setdefault(span["trace_id"], []).append(span)
    for group in by_trace.values():
        for first in range(0, len(group), SPANS_PER_REQUEST):
            yield group[first : first + SPANS_PER_REQUEST]
