"""Ids: fixed by what they name, and the same as the Langfuse package's."""

from __future__ import annotations

import re

from langfuse import Langfuse

from slm_core.tracing.ids import score_id, span_id, trace_id


def test_trace_id_is_the_packages_own() -> None:
    for run_id in ("run-1", "eval-run-17", "ü"):
        assert trace_id(run_id) == Langfuse.create_trace_id(seed=run_id)


def test_span_ids_are_stable_and_tell_spans_apart() -> None:
    base = ("run-1", "2026-01-01T00:00:00+00:00", "retrain/train", 0)
    others = [
        ("run-2", *base[1:]),
        (base[0], "2026-01-02T00:00:00+00:00", *base[2:]),
        (*base[:2], "retrain/eval", 0),
        (*base[:3], 1),
    ]
    assert span_id(*base) == span_id(*base)
    assert len({span_id(*base), *(span_id(*other) for other in others)}) == 5
    assert re.fullmatch("[0-9a-f]{16}", span_id(*base))


def test_score_ids_differ_by_metric() -> None:
    assert score_id("a", "f1") == score_id("a", "f1") != score_id("a", "recall")
