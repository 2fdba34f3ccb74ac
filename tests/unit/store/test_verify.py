"""Verify finds what was changed behind the store's back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from slm_core.records import Promotion, Quarantined, Stage
from slm_core.store import Store
from slm_core.testing.records import (
    make_adapter,
    make_call,
    make_dataset,
    make_decision,
    make_evaluation,
    make_training_run,
)

Sql = Callable[..., list[Any]]


@pytest.fixture
def full_store(store: Store) -> Store:
    store.calls.add([make_call(n) for n in range(7)], lambda _: None)
    store.claims.make(size=3)
    store.quarantine.add([Quarantined(source="s:0", reason="r", raw="{")])
    store.datasets.save(make_dataset())
    store.runs.save(make_training_run())
    store.adapters.save(make_adapter())
    store.evaluations.save(make_evaluation())
    store.decisions.save(make_decision())
    move = Promotion(
        id="p",
        agent_name="a",
        track="toolcall",
        adapter_id="x",
        from_stage=None,
        to_stage=Stage.LIVE,
        previous_adapter_id=None,
        decision_id=None,
        who="ada",
        reason="r",
    )
    store.routes.move(move, None)
    return store


def test_an_untouched_store_agrees_with_itself(full_store: Store) -> None:
    assert full_store.verify() == []


@pytest.mark.parametrize(
    ("tampering", "found"),
    [
        (
            "UPDATE call_bodies SET body = replace(body, 'Town 3', 'Town 4') "
            "WHERE body LIKE '%Weather in Town 3%'",
            ["call_bodies ", "calls call-000003: question and answer have another digest"],
        ),
        (
            "UPDATE call_bodies SET body = '{' WHERE body LIKE '%Weather in Town 3%'",
            ["call_bodies ", "calls call-000003: cannot be read (JSONDecodeError)"],
        ),
        (
            "UPDATE calls SET digest = 'qa-0' WHERE id = 'call-000003'",
            ["calls call-000003: question and answer have another digest"],
        ),
        (
            "UPDATE calls SET claim_id = NULL WHERE id = 'call-000001'",
            ["claims claim-", ": holds other calls than when it was made"],
        ),
        ("UPDATE claims SET size = 4 WHERE number = 1", ["claims claim-"]),
        ("UPDATE quarantine SET raw = '}'", ["quarantine row-"]),
        (
            "UPDATE datasets SET record = replace(record, '160', '161')",
            ["datasets dataset-5b1f0c77a2d94e16: the record has another hash"],
        ),
        ("UPDATE runs SET record = replace(record, '37', '38')", ["runs train-20260314-0304"]),
        ("UPDATE adapters SET sha256 = 'x'", ["adapters adapter-9c02d4e1f3a85b67"]),
        (
            "UPDATE decisions SET record = replace(record, 'SUCCESS', 'FAILURE')",
            ["decisions decision-18f2ab3c4d5e6f70: the record has another hash"],
        ),
        ("UPDATE promotions SET record = replace(record, 'ada', 'eve')", ["promotions p: "]),
        (
            "UPDATE evaluation_metrics SET value = 1 "
            "WHERE arm = 'student' AND metric = 'args_f1' AND view = 'strict'",
            ["evaluations evaluation-e3d0a7b15c924f68: the metrics table says something else"],
        ),
        ("UPDATE evaluations SET record = '{}'", ["the record has another hash", "cannot be read"]),
    ],
)
def test_tampering_is_found(full_store: Store, sql: Sql, tampering: str, found: list[str]) -> None:
    sql(tampering)
    lines = full_store.verify()
    for words in found:
        assert any(words in line for line in lines), lines


def test_a_text_that_is_gone_is_found(full_store: Store, sql: Sql, store_url: str) -> None:
    if store_url.startswith("postgresql"):
        sql("ALTER TABLE calls DROP CONSTRAINT IF EXISTS calls_exchange_sha256_fkey")
    sql("DELETE FROM call_bodies WHERE body LIKE '%Weather in Town 3%'")
    assert full_store.verify() == ["calls call-000003: the exchange text is missing"]
