"""Calls: what is stored, what is left out and why, and what reads back."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from slm_core.errors import RecordNotFound, StoreError
from slm_core.records import Call, Message, Tool, ToolUse
from slm_core.store import AddResult, Store
from slm_core.testing.records import make_call

Sql = Callable[..., list[Any]]
DUPLICATE = "exact duplicate"
HIGH, LOW = chr(0xD83D), chr(0xDE00)
"""Halves of one emoji; a stream that is cut between them yields them as lone surrogates."""


def any_call(call: Call) -> None:
    """Every call may become an example."""


def only_successes(call: Call) -> str | None:
    return None if call.success else "call failed"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"response": None, "success": False, "error": "timeout\nafter 30 s", "track": None},
        {"messages": (), "tools": (), "prompt_tokens": None, "cost_nanousd": None},
        {"messages": (Message(role="user", content="no system prompt"),)},
        {
            "messages": (
                Message(role="system", content="one"),
                Message(role="system", content="two"),
                Message(role="user", content=""),
                Message(
                    role="assistant",
                    content="",
                    tool_calls=(ToolUse(name="f", arguments={"a": [1, {"b": None}]}),),
                ),
                Message(role="tool", content="{}"),
                Message(role="system", content="late"),
            )
        },
        {"tool_calls": (ToolUse(name="f", arguments={"n": 2**80, "x": 0.1, "t": True}),)},
        {"source": "slm", "complete": False, "finish_reason": "length", "seconds": 1e-9},
        {"tags": {"zone": "eu", "": "æøå 漢字 🙂"}, "idempotency_key": "key \\u0000 \\"},
        {"cost_nanousd": 10**15, "prompt_tokens": 10**9, "seconds": 1e7},
    ],
)
def test_a_call_reads_back_equal(store: Store, changes: dict[str, Any]) -> None:
    call = make_call(1, **changes)
    store.calls.add([call], any_call)
    assert store.calls.get(call.id) == call
    assert list(store.calls.select()) == [call]


@pytest.mark.parametrize("text", ["a\x00b", HIGH, LOW + HIGH, HIGH + LOW, "\\u0000\x00"], ids=ascii)
def test_text_that_databases_refuse_reads_back_equal(store: Store, text: str) -> None:
    call = make_call(
        1,
        id=f"id {text}",
        agent_name=text,
        error=text,
        idempotency_key=text,
        response=text,
        messages=(Message(role="system", content=text), Message(role="user", content=text)),
        tool_calls=(ToolUse(name=text, arguments={text: [text]}),),
        tags={text: text},
    )
    store.calls.add([call], lambda _: text)
    assert store.calls.get(call.id) == call
    assert list(store.calls.select(agent_name=text)) == [call]
    assert store.verify() == []


def test_the_order_of_parameters_is_kept_because_prompts_show_it(store: Store) -> None:
    properties = {name: {"type": "string"} for name in ("zebra", "apple", "mango")}
    tool = Tool(name="f", parameters={"type": "object", "properties": properties})
    store.calls.add([make_call(1, tools=(tool,))], any_call)
    (read,) = store.calls.get("call-000001").tools
    assert list(read.parameters["properties"]) == ["zebra", "apple", "mango"]


def test_times_come_back_in_utc_with_their_zone(store: Store) -> None:
    moment = datetime(
        2026, 11, 1, 1, 30, 0, 123456, tzinfo=timezone(timedelta(hours=5, minutes=30))
    )
    store.calls.add([make_call(1, created_at=moment)], any_call)
    read = store.calls.get("call-000001").created_at
    assert read == moment
    assert read.tzinfo is UTC


def test_a_time_without_zone_is_refused(store: Store) -> None:
    naive = make_call(1).created_at.replace(tzinfo=None)
    with pytest.raises(StoreError, match="no time zone"):
        store.calls.add([make_call(1, created_at=naive)], any_call)
    assert store.calls.count() == 0


def test_a_call_is_stored_once(store: Store) -> None:
    calls = [make_call(n) for n in range(3)]
    assert store.calls.add([*calls, calls[0]], any_call) == AddResult(3, 1, 3, {})
    assert store.calls.add(calls, any_call) == AddResult(0, 3, 0, {})
    assert store.calls.add([], any_call) == AddResult(0, 0, 0, {})
    assert store.calls.count() == store.calls.waiting() == 3


def test_more_calls_than_one_statement_holds(store: Store) -> None:
    calls = [make_call(n) for n in range(2_100)]
    assert store.calls.add([*calls, *calls[:50]], any_call) == AddResult(2_100, 50, 2_100, {})
    assert list(store.calls.select()) == calls


def test_an_id_with_another_answer_is_refused_and_nothing_is_stored(store: Store) -> None:
    store.calls.add([make_call(1)], any_call)
    with pytest.raises(StoreError, match="'call-000001' is already stored with another") as caught:
        store.calls.add([make_call(2), make_call(1, response="else")], any_call, spool=("a", 9))
    assert caught.value.context["call_ids"] == ("call-000001",)
    assert store.calls.count() == 1
    assert store.calls.spool_offset("a") == 0


def test_the_same_id_twice_in_one_batch_with_two_answers_is_refused(store: Store) -> None:
    with pytest.raises(StoreError, match="another question or answer"):
        store.calls.add([make_call(1), make_call(1, response="else")], any_call)
    assert store.calls.count() == 0


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_number_that_json_cannot_say_is_refused_by_name(store: Store, number: float) -> None:
    bad = make_call(2, tool_calls=(ToolUse(name="f", arguments={"x": number}),))
    with pytest.raises(StoreError, match="'call-000002' cannot be stored") as caught:
        store.calls.add([make_call(1), bad], any_call)
    assert caught.value.context["call_ids"] == ("call-000002",)
    assert store.calls.count() == 0


def test_arguments_nested_beyond_reason_are_refused_by_name(store: Store) -> None:
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"a": deep}
    bad = make_call(2).model_copy(
        update={"tool_calls": (ToolUse.model_construct(name="f", arguments=deep),)}
    )
    with pytest.raises(StoreError, match="'call-000002' cannot be stored"):
        store.calls.add([make_call(1), bad], any_call)
    assert store.calls.count() == 0


def test_an_idempotency_key_counts_per_agent(store: Store) -> None:
    first = make_call(1, idempotency_key="k")
    again = make_call(2, idempotency_key="k")
    other_agent = make_call(3, idempotency_key="k", agent_name="billing")
    assert store.calls.add([first, again], any_call) == AddResult(1, 1, 1, {})
    assert store.calls.add([again, other_agent], any_call) == AddResult(1, 1, 1, {})
    assert [call.id for call in store.calls.select()] == [first.id, other_agent.id]


def test_an_answer_left_out_by_its_key_does_not_make_others_duplicates(store: Store) -> None:
    store.calls.add([make_call(1, idempotency_key="k")], any_call)
    left_out = make_call(2, idempotency_key="k")
    same_answer = make_call(2, id="call-other")
    assert store.calls.add([left_out, same_answer], any_call) == AddResult(1, 1, 1, {})


def test_exact_duplicates_are_stored_but_only_the_first_is_usable(store: Store) -> None:
    in_one_batch = [make_call(1), make_call(1, id="b"), make_call(2)]
    assert store.calls.add(in_one_batch, any_call) == AddResult(3, 0, 2, {DUPLICATE: 1})
    later = [make_call(1, id="c", seconds=9.0, agent_name="other")]
    assert store.calls.add(later, any_call) == AddResult(1, 0, 0, {DUPLICATE: 1})
    assert (store.calls.count(), store.calls.waiting()) == (4, 2)


def test_an_unusable_call_does_not_make_a_usable_one_a_duplicate(store: Store) -> None:
    failed = make_call(1, id="a", success=False)
    result = store.calls.add([failed, make_call(1)], only_successes)
    assert result == AddResult(2, 0, 1, {"call failed": 1})


def test_reasons_are_counted_for_stored_calls_only(store: Store) -> None:
    calls = [make_call(n, success=n > 1) for n in range(5)]
    assert store.calls.add(calls, only_successes) == AddResult(5, 0, 3, {"call failed": 2})
    assert store.calls.add(calls, only_successes) == AddResult(0, 5, 0, {})


def test_every_unusable_call_counts_under_its_reason(store: Store) -> None:
    assert store.calls.unusable() == {}
    calls = [make_call(n, success=n > 1) for n in range(5)]
    again = make_call(4).model_copy(update={"id": "again"})
    store.calls.add([*calls, again], only_successes)
    assert store.calls.unusable() == {"call failed": 2, "exact duplicate": 1}


def test_a_text_that_repeats_is_kept_once(store: Store, sql: Sql) -> None:
    store.calls.add([make_call(n) for n in range(20)], any_call)
    system_prompt, tools, exchanges = 1, 1, 20
    assert sql("SELECT count(*) FROM call_bodies") == [(system_prompt + tools + exchanges,)]


def test_the_spool_offset_moves_with_the_calls_and_never_back(store: Store) -> None:
    assert store.calls.spool_offset("seg-1") == 0
    store.calls.add([make_call(1)], any_call, spool=("seg-1", 512))
    store.calls.add([], any_call, spool=("seg-1", 700))
    store.calls.add([make_call(1)], any_call, spool=("seg-1", 512))
    store.calls.add([make_call(2)], any_call, spool=("seg-2", 4))
    assert store.calls.spool_offset("seg-1") == 700
    assert store.calls.spool_offset("seg-2") == 4


def test_calls_come_in_the_order_of_their_ids(store: Store) -> None:
    ids = ["b", "B", "a", "ab", "é", "10", "9", "_"]
    store.calls.add([make_call(n, id=id) for n, id in enumerate(ids)], any_call)
    assert [call.id for call in store.calls.select()] == sorted(ids)


def test_calls_are_selected_by_every_condition_given(store: Store) -> None:
    start = make_call().created_at
    calls = [
        make_call(n, agent_name="ab"[n % 2], created_at=start + timedelta(hours=n))
        for n in range(6)
    ]
    store.calls.add(calls, any_call)
    (claim,) = store.claims.make(size=4)

    def numbers(**conditions: Any) -> list[int]:
        return [int(call.id[-1]) for call in store.calls.select(**conditions)]

    assert numbers() == [0, 1, 2, 3, 4, 5]
    assert numbers(claim_id=claim.id) == [0, 1, 2, 3]
    assert numbers(agent_name="b") == [1, 3, 5]
    west = timezone(timedelta(hours=-8))
    assert numbers(since=(start + timedelta(hours=3)).astimezone(west)) == [3, 4, 5]
    assert numbers(agent_name="a", claim_id=claim.id, limit=1) == [0]
    assert numbers(limit=0) == []
    assert numbers(claim_id="no such claim") == []


def test_the_store_may_be_written_while_calls_are_being_read(store: Store) -> None:
    store.calls.add([make_call(n) for n in range(1_500)], any_call)
    seen = 0
    for call in store.calls.select():
        seen += 1
        if seen == 500:
            store.calls.add([make_call(9_999)], any_call)
        assert call.success
    assert seen == 1_501


def test_an_unknown_call_is_not_found(store: Store) -> None:
    with pytest.raises(RecordNotFound, match="no call 'nobody'"):
        store.calls.get("nobody")


def test_stats_add_up_per_agent_and_model(store: Store) -> None:
    seconds = [float(n) for n in range(1, 101)]
    calls = [make_call(n, seconds=s, success=n % 4 != 0) for n, s in enumerate(seconds)]
    calls[0] = calls[0].model_copy(update={"cost_nanousd": None, "prompt_tokens": None})
    other = make_call(500, agent_name="billing", model="gpt-5", cost_nanousd=None, seconds=2.0)
    store.calls.add([*calls, other], any_call)

    billing, weather = store.calls.stats()
    assert (weather.agent_name, weather.agent_type, weather.model) == (
        "weather-desk",
        "sub-agent",
        "gpt-4o",
    )
    assert (weather.calls, weather.succeeded, weather.success_rate) == (100, 75, 0.75)
    assert (weather.cost_nanousd, weather.unpriced) == (99 * 765_000, 1)
    assert weather.seconds_mean == 50.5
    assert (weather.seconds_p50, weather.seconds_p95) == pytest.approx((50, 95), rel=0.02)
    assert (weather.prompt_tokens, weather.completion_tokens) == (99 * 210, 100 * 24)
    assert (billing.calls, billing.cost_nanousd, billing.unpriced) == (1, None, 1)
    assert billing.seconds_mean == 2
    assert (billing.seconds_p50, billing.seconds_p95) == pytest.approx((2, 2), rel=0.02)
    assert store.calls.stats("billing") == [billing]
    assert store.calls.stats("nobody") == []


@pytest.mark.parametrize("size", [1, 2, 3, 19, 20, 21])
def test_percentiles_are_nearest_ranks_to_two_percent(store: Store, size: int) -> None:
    seconds = [(n * 7 % size + 1) / 10 for n in range(size)]
    store.calls.add([make_call(n, seconds=s) for n, s in enumerate(seconds)], any_call)
    (stats,) = store.calls.stats()
    ranked = sorted(seconds)
    exact = (ranked[math.ceil(0.50 * size) - 1], ranked[math.ceil(95 * size / 100) - 1])
    assert (stats.seconds_p50, stats.seconds_p95) == pytest.approx(exact, rel=0.0201)


@pytest.mark.parametrize(
    "taken",
    [
        *({"seconds": seconds} for seconds in (math.nan, math.inf, -1e10, 1e10)),
        *({name: 2**62} for name in ("prompt_tokens", "completion_tokens", "cost_nanousd")),
        {"cost_nanousd": 2**64},
        {"prompt_tokens": -1},
    ],
)
def test_what_no_sum_can_hold_is_refused_by_name(store: Store, taken: dict[str, Any]) -> None:
    (name,) = taken
    with pytest.raises(StoreError, match=f"'call-000002' cannot be stored: {name} is") as caught:
        store.calls.add([make_call(1), make_call(2, **taken)], any_call)
    assert caught.value.context["call_ids"] == ("call-000002",)
    assert store.calls.count() == 0
