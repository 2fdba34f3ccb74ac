"""Ids of traces and spans: fixed once, so that sending again never makes a second copy.

The trace id is what ``langfuse.Langfuse.create_trace_id(seed=run_id)`` returns, computed here
without importing the package. One run has one trace, however often it is resumed.
"""

from __future__ import annotations

import hashlib


def trace_id(run_id: str) -> str:
    """Return the Langfuse trace id of a run: 32 hexadecimal digits."""
    return _digest(run_id)[:32]


def span_id(run_id: str, started_at: str, path: str, ordinal: int) -> str:
    """Return the id of a span: 16 hexadecimal digits.

    Args:
        run_id: Of the run.
        started_at: When this execution of the run began. A resumed run takes the same path
            again; its spans are others than those of the execution that died.
        path: Names of the spans above and of this one.
        ordinal: Which of the spans on that path, from 0.
    """
    return _digest("\n".join((run_id, started_at, path, str(ordinal))))[:16]


def score_id(span: str, metric: str) -> str:
    """Return the id of a metric's score on a span; Langfuse updates on the same id."""
    return _digest(f"{span}\n{metric}")[:32]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
