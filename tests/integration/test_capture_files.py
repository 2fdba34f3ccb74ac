"""Calls that come in as JSON lines, and go out as a training file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from slm_core.capture import CaptureSpec, WorkflowTracer, drain_spool, usable
from slm_core.records import Call, DropReason, IngestReport
from slm_core.store import Store, open_store

pytestmark = pytest.mark.integration

AGENT: dict[str, Any] = {"agent_type": "sub-agent", "agent_name": "booking", "model_used": "gpt-4o"}
SMALL = CaptureSpec(segment_bytes=16384, strict=True)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(f"sqlite:///{tmp_path}/slm.db") as store:
        yield store


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    folder = tmp_path / "spool"
    folder.mkdir()
    return folder


def tracer_for(spool: Path) -> WorkflowTracer:
    return WorkflowTracer(SMALL, spool_dir=spool)


def capture(tracer: WorkflowTracer, count: int, **more: Any) -> list[str]:
    return [
        tracer.capture_call(
            **AGENT, user_query=f"question {n}", assistant_response=f"answer {n}", **more
        )
        for n in range(count)
    ]


def stored_ids(store: Store) -> list[str]:
    return [call.id for call in store.calls.select()]


def counts_add_up(report: IngestReport) -> bool:
    return (
        report.read == report.stored + report.duplicates + report.quarantined
        and report.stored == report.usable + sum(report.unusable.values())
    )


def line(**changes: Any) -> str:
    call = {
        "agent_type": "sub-agent",
        "agent_name": "booking",
        "model": "gpt-4o",
        "messages": [{"role": "user", "content": "q"}],
        "response": "a",
    }
    return json.dumps({**call, **changes})


def test_json_lines_with_garbage(store: Store, spool: Path) -> None:
    good = [
        line(),
        line(id="7", conversation_id="c", created_at="2026-01-02T03:04:05"),
        json.dumps({**AGENT, "system_prompt": "s", "user_query": "q", "assistant_response": "b"}),
        line(
            response=None,
            messages=[{"role": "developer", "content": [{"type": "text", "text": "t"}]}],
            tools=[{"type": "function", "function": {"name": "f", "description": "d"}}],
            tool_calls=[{"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}],
        ),
    ]
    bad = [
        "{",
        "[]",
        "null",
        line(agent_name=None),
        line(surprise=1),
        line(prompt_tokens=float("nan")),
        "{" * 100_000,
        line(tools=[{"name": "f", "parameters": {"maximum": 1e400}}]).replace("Infinity", "1e400"),
    ]
    text = "\n".join([*good, "", *bad, good[1]]).encode()
    (spool / "other.jsonl").write_bytes(text + b"\n\xff\xfe\n")
    report = drain_spool(spool, store)
    assert (report.read, report.stored) == (len(good) + len(bad) + 2, len(good))
    assert (report.duplicates, report.quarantined) == (1, len(bad) + 1)
    assert counts_add_up(report)
    assert (spool / "done" / "other.jsonl").exists()
    sources = {row.source for row in store.quarantine.list()}
    assert sources == {f"other.jsonl:{n}" for n in [*range(6, 14), 15]}
    calls = {call.response: call for call in store.calls.select()}
    assert store.calls.get("7").created_at.isoformat() == "2026-01-02T03:04:05+00:00"
    assert [m.role for m in calls["b"].messages] == ["system", "user"]
    assert calls[None].tool_calls[0].arguments == {"x": 1}
    assert calls[None].success


def test_a_file_read_twice_adds_nothing(store: Store, spool: Path) -> None:
    for name in ("a.jsonl", "a.jsonl", "b.jsonl"):
        (spool / name).write_text(line() + "\n")
        drain_spool(spool, store)
    assert store.calls.count() == 1
    assert sorted(path.name for path in (spool / "done").iterdir()) == [
        "a.1.jsonl",
        "a.jsonl",
        "b.jsonl",
    ]


def test_an_id_that_belongs_to_another_call_is_quarantined(store: Store, spool: Path) -> None:
    (spool / "a.jsonl").write_text("\n".join([line(id="1"), line(id="1", response="other")]))
    report = drain_spool(spool, store)
    assert (report.stored, report.quarantined) == (1, 1)
    assert store.calls.get("1").response == "a"


def hermes_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


@pytest.mark.parametrize("filter_", [usable, lambda call: None if call.success else "bad"])
def test_training_file(tmp_path: Path, filter_: Callable[[Call], str | None]) -> None:
    with tracer_for(tmp_path / "spool") as tracer:
        tracer.capture_call(
            **AGENT,
            system_prompt="be brief",
            messages=[
                {"role": "user", "content": "q1"},
                {
                    "role": "assistant",
                    "tool_calls": [{"name": "look", "arguments": {"x": "é"}}],
                },
                {"role": "tool", "content": "r"},
            ],
            tools=[{"name": "look", "description": "d"}],
            tool_calls=[{"name": "look", "arguments": {"y": [1]}}],
        )
        capture(tracer, 2)
        tracer.capture_call(**AGENT, user_query="q", success=False)
        tracer.capture_call(**{**AGENT, "agent_name": "other"}, user_query="q", success=False)
        written = tracer.generate_training_dataset(
            tmp_path / "out", agent_name="booking", usable=filter_
        )
        again = tracer.generate_training_dataset(tmp_path / "again", agent_name="booking")
    assert (written.calls, written.rows, sum(written.left_out.values())) == (4, 3, 1)
    rows = hermes_rows(written.path)
    first = next(row for row in rows if row["tools"] != "[]")
    assert first["conversations"] == [
        {"from": "system", "value": "be brief"},
        {"from": "human", "value": "q1"},
        {"from": "gpt", "value": '<tool_call name="look">{"x": "é"}</tool_call>'},
        {"from": "tool", "value": "r"},
        {"from": "gpt", "value": '<tool_call name="look">{"y": [1]}</tool_call>'},
    ]
    assert [tool["name"] for tool in json.loads(first["tools"])] == ["look"]
    assert again.path.read_bytes() == written.path.read_bytes()


def test_training_file_leaves_out_broken_unicode(tmp_path: Path) -> None:
    with tracer_for(tmp_path / "spool") as tracer:
        tracer.capture_call(**AGENT, user_query="\ud800", assistant_response="a")
        written = tracer.generate_training_dataset(tmp_path / "out")
    assert written.left_out == {DropReason.ENCODING: 1}
    assert written.path.read_bytes() == b""
