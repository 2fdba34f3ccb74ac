"""Calls that come in as JSON lines, and go out as a training file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from slm_core.capture import CaptureSpec, WorkflowTracer, drain_spool
from slm_core.dataset import why_unusable
from slm_core.dataset.hub_rows import hermes_calls
from slm_core.prompting.formats import NO_CALL_TEXT
from slm_core.records import DropReason, IngestReport, ToolUse
from slm_core.store import Store, open_store

pytestmark = pytest.mark.integration

AGENT: dict[str, Any] = {"agent_type": "sub-agent", "agent_name": "booking", "model_used": "gpt-4o"}
SMALL = CaptureSpec(segment_bytes=16384, strict=True)

drain = partial(drain_spool, usable=why_unusable)


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
    report = drain(spool, store)
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
        drain(spool, store)
    assert store.calls.count() == 1
    assert sorted(path.name for path in (spool / "done").iterdir()) == [
        "a.1.jsonl",
        "a.jsonl",
        "b.jsonl",
    ]


def test_an_id_that_belongs_to_another_call_is_quarantined(store: Store, spool: Path) -> None:
    (spool / "a.jsonl").write_text("\n".join([line(id="1"), line(id="1", response="other")]))
    report = drain(spool, store)
    assert (report.stored, report.quarantined) == (1, 1)
    assert store.calls.get("1").response == "a"


def hermes_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def test_training_file(tmp_path: Path) -> None:
    with tracer_for(tmp_path / "spool") as tracer:
        asked = tracer.capture_call(
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
        tracer.capture_call(
            **AGENT,
            user_query="q2",
            assistant_response='{"name": "look", "arguments": {}}',
            track="structured",
        )
        tracer.capture_call(**AGENT, user_query="q3", assistant_response="prose")
        tracer.capture_call(**AGENT, user_query="q", success=False)
        tracer.capture_call(**{**AGENT, "agent_name": "other"}, user_query="q", success=False)
        written, again = (
            tracer.generate_training_dataset(
                tmp_path / name, agent_name="booking", usable=why_unusable
            )
            for name in ("out", "again")
        )
    assert (written.calls, written.rows) == (4, 2)
    assert written.left_out == {DropReason.NO_TRACK: 1, DropReason.FAILED: 1}
    first, second = hermes_rows(written.path)
    assert (first["id"], first["track"], second["track"]) == (asked, "toolcall", "structured")
    system, *turns = first["conversations"]
    assert system["value"].startswith(f"be brief\n\n<tools>\n{first['tools']}\n</tools>")
    assert turns == [
        {"from": "human", "value": "q1"},
        {"from": "gpt", "value": hermes_tag('{"name": "look", "arguments": {"x": "é"}}')},
        {"from": "tool", "value": "<tool_response>\nr\n</tool_response>"},
        {"from": "gpt", "value": hermes_tag('{"name": "look", "arguments": {"y": [1]}}')},
    ]
    assert second["conversations"][-1]["value"] == '{"name": "look", "arguments": {}}'
    (tool,) = json.loads(first["tools"])
    assert (tool["type"], tool["function"]["name"]) == ("function", "look")
    assert again.path.read_bytes() == written.path.read_bytes()


def hermes_tag(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


@pytest.mark.parametrize(
    "answer",
    [
        {"tool_calls": [{"name": "look", "arguments": {"y": [1]}}]},
        {"assistant_response": '<tool_call name="look">{"y": [1]}</tool_call>'},
    ],
)
def test_the_reader_of_public_sets_reads_the_training_file(
    tmp_path: Path, answer: dict[str, Any]
) -> None:
    with tracer_for(tmp_path / "spool") as tracer:
        tracer.capture_call(**AGENT, user_query="q", tools=[{"name": "look"}], **answer)
        written = tracer.generate_training_dataset(tmp_path / "out", usable=why_unusable)
    (row,) = hermes_rows(written.path)
    (call,) = hermes_calls(row, "toolcall", "ours")
    assert [(turn.role, turn.content) for turn in call.messages] == [("user", "q")]
    assert call.tool_calls == (ToolUse(name="look", arguments={"y": [1]}),)
    assert [tool.name for tool in call.tools] == ["look"]
    assert why_unusable(call) is None


def test_a_filter_of_ones_own_may_keep_free_text(tmp_path: Path) -> None:
    with tracer_for(tmp_path / "spool") as tracer:
        tracer.capture_call(**AGENT, user_query="hello", assistant_response="Good day.")
        tracer.capture_call(**AGENT, user_query="\ud800", assistant_response="a")
        written = tracer.generate_training_dataset(tmp_path / "out", usable=lambda _: None)
    assert written.left_out == {DropReason.ENCODING: 1}
    (row,) = hermes_rows(written.path)
    assert (row["track"], row["tools"]) == (None, "[]")
    assert row["conversations"] == [
        {"from": "human", "value": "hello"},
        {"from": "gpt", "value": "Good day."},
    ]


def test_a_refusal_is_a_row(tmp_path: Path) -> None:
    with tracer_for(tmp_path / "spool") as tracer:
        tracer.capture_call(**AGENT, user_query="q", assistant_response=NO_CALL_TEXT)
        written = tracer.generate_training_dataset(tmp_path / "out", usable=why_unusable)
    (row,) = hermes_rows(written.path)
    assert row["conversations"][-1] == {"from": "gpt", "value": NO_CALL_TEXT}
