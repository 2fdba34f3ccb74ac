"""``slm traces`` without a Langfuse; with one, see the integration tests."""

from __future__ import annotations

from typing import Any

from slm_core.store import Store


def test_nothing_to_send_needs_no_langfuse(slm: Any, store: Store) -> None:
    assert slm.json("traces", "push") == {"sent": 0, "left": 0}


def test_spans_stay_until_langfuse_is_set_up(slm: Any, store: Store) -> None:
    store.spans.add([{"id": "a", "trace_id": "t", "name": "train"}])
    said = slm.refused("traces", "push", status=2)
    assert "1 spans wait" in said
    assert "LANGFUSE_PUBLIC_KEY is not set" in said
    assert store.spans.counts() == {"pending": 1, "sent": 0}


def test_check_says_what_is_missing(slm: Any) -> None:
    assert "LANGFUSE_BASE_URL is not set" in slm.refused("traces", "check")
