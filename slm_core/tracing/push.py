"""Send kept spans and their scores to Langfuse, each once.

Langfuse does not remove duplicates, and it accepts spans before it shows them. So each push
first reads back which of a trace's spans are there already and sends only the others. If the
outcome of a request is unknown, it reads back until ``confirm_seconds`` have passed; spans it
then still cannot see stay unsent, for a later push to look again. A span counts as sent when
Langfuse acknowledged it (2xx) or shows it, and its scores were taken.

What remains: a server that shows a span only after ``confirm_seconds`` and a push within that
time make a duplicate.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from slm_core.errors import TracingUnavailable
from slm_core.tracing.config import LangfuseConfig

if TYPE_CHECKING:
    from slm_core.tracing.server import LangfuseServer

log = logging.getLogger(__name__)

READ_BACK_EVERY_SECONDS = 2.0
SPANS_PER_REQUEST = 256
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
    on_progress: Callable[[int, int, str], None] | None = None,
) -> PushResult:
    """Send all spans that ``outbox`` still holds; stop at the first failure.

    Args:
        outbox: Where the spans are kept.
        config: Where they go.
        on_progress: Called with (sent so far, found so far, what).
    """
    sent: list[str] = []
    reasons: list[str] = []
    failed: tuple[str, ...] = ()
    while not failed and (spans := outbox.pending(SPANS_PER_REQUEST)):
        result = push(spans, config)
        outbox.mark_sent(result.sent)
        sent += result.sent
        failed = result.failed
        reasons += [result.reason] if result.reason else []
        if on_progress is not None:
            on_progress(len(sent), len(sent) + len(failed), "spans sent")
    return PushResult(tuple(sent), failed, "; ".join(reasons))


def push(spans: Iterable[Mapping[str, Any]], config: LangfuseConfig) -> PushResult:
    """Send ``spans`` to Langfuse; never raises for what Langfuse or the network does.

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
                _send_missing(server, batch, config)
                reasons += server.add_scores(batch)
            except TracingUnavailable as error:
                reasons.append(error.message)
                if error.context.get("status") not in REFUSED_CONTENT:
                    break
            else:
                sent += [span["id"] for span in batch]
    failed = tuple(span["id"] for span in waiting if span["id"] not in sent)
    log.info("spans sent count=%d", len(sent))
    if failed:
        log.warning("spans not sent count=%d reason=%s", len(failed), reasons[-1])
    return PushResult(tuple(sent), failed, "; ".join(reasons))


def _send_missing(
    server: LangfuseServer, batch: list[dict[str, Any]], config: LangfuseConfig
) -> None:
    """Return once Langfuse has every span of ``batch``, all of one trace."""
    from slm_core.tracing.delivery import send

    arrived = server.span_ids(batch[0]["trace_id"]) or frozenset()
    missing = [span for span in batch if span["id"] not in arrived]
    if not missing:
        return
    outcome = send(missing, config)
    if outcome.state == "accepted":
        return
    sentence = f"Langfuse at {config.base_url} did not take {len(missing)} spans: {outcome.reason}."
    if outcome.state == "unknown":
        if _shows_up(server, missing, config.confirm_seconds):
            return
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
