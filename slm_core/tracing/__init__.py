"""One Langfuse trace per run: record spans, keep them, send them once.

The packages behind it are imported when something is sent, not before.
"""

from slm_core.tracing.config import LangfuseConfig
from slm_core.tracing.push import PushResult, SpanOutbox, check_langfuse, push, push_pending
from slm_core.tracing.recorder import RunTrace, Span, SpanSink

__all__ = [
    "LangfuseConfig",
    "PushResult",
    "RunTrace",
    "Span",
    "SpanOutbox",
    "SpanSink",
    "check_langfuse",
    "push",
    "push_pending",
]
