"""The outbox of trace spans."""

from __future__ import annotations

from typing import Any

import pytest

from slm_core.errors import StoreError
from slm_core.store import Store


def span(number: int, trace_id: str = "t1", **changes: Any) -> dict[str, Any]:
    return {
        "id": f"s{number}",
        "trace_id": trace_id,
        "name": "train",
        "input": {"rows": number, "note": "\x00 \ud83d"},
    } | changes


def test_spans_wait_in_the_order_they_ended(store: Store) -> None:
    assert store.spans.add([span(9), span(1)]) == 2
    assert store.spans.add([span(5)]) == 1
    assert store.spans.pending() == [span(9), span(1), span(5)]
    assert store.spans.pending(2) == [span(9), span(1)]
    assert store.spans.counts() == {"pending": 3, "sent": 0}


def test_a_span_is_kept_once(store: Store) -> None:
    store.spans.add([span(1)])
    assert store.spans.add([span(1), span(2)]) == 1
    assert store.spans.add([]) == 0
    assert store.spans.counts() == {"pending": 2, "sent": 0}


def test_a_span_that_was_sent_stays_sent_when_added_again(store: Store) -> None:
    store.spans.add([span(1), span(2)])
    assert store.spans.mark_sent(["s1", "unknown"]) == 1
    assert store.spans.mark_sent(["s1"]) == 0
    assert store.spans.mark_sent([]) == 0
    store.spans.add([span(1)])
    assert store.spans.pending() == [span(2)]
    assert store.spans.counts() == {"pending": 1, "sent": 1}


def test_a_trace_is_read_whole_sent_or_not(store: Store) -> None:
    store.spans.add([span(1), span(2, "t2"), span(3)])
    store.spans.mark_sent(["s1"])
    assert store.spans.by_trace("t1") == [span(1), span(3)]
    assert store.spans.by_trace("t9") == []


def test_an_id_with_other_content_is_refused(store: Store) -> None:
    store.spans.add([span(1)])
    with pytest.raises(StoreError, match="'s1' is already stored with other content"):
        store.spans.add([span(2), span(1, name="evaluate")])
    assert store.spans.counts() == {"pending": 1, "sent": 0}


@pytest.mark.parametrize("bad", [{}, span(1, name=None), span(1, id=7)])
def test_a_span_without_its_names_is_refused(store: Store, bad: dict[str, Any]) -> None:
    with pytest.raises(StoreError, match="id, trace_id and name"):
        store.spans.add([bad])
