"""One store, many threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import sqlalchemy as sa

from slm_core.store import Store, open_store
from slm_core.testing.records import make_call


def test_threads_share_a_store(store: Store) -> None:
    calls = [make_call(n) for n in range(210)]

    def ingest(thread: int) -> int:
        mine = calls[thread * 20 :] + calls[: thread * 20]
        stored = 0
        for start in range(0, len(mine), 30):
            stored += store.calls.add(mine[start : start + 30], lambda _: None).stored
            store.claims.make(size=20)
        return stored

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(ingest, range(8))) == 210
    assert len(store.claims.list()) == 10
    assert store.calls.waiting() == 10
    assert store.verify() == []


def test_threads_open_an_empty_database_at_once(empty_url: str) -> None:
    barrier = threading.Barrier(6)

    def open_at_once(thread: int) -> None:
        barrier.wait()
        with open_store(empty_url) as store:
            store.calls.add([make_call(thread)], lambda _: None)

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(open_at_once, range(6)))
    with open_store(empty_url) as store:
        assert store.calls.count() == 6


def test_the_store_shows_its_url_without_the_password(store_url: str) -> None:
    with open_store(store_url) as store:
        assert store.url == sa.make_url(store_url).render_as_string(hide_password=True)
