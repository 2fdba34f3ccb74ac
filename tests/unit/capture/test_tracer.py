import gc
import json
import math
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from slm_core.capture import CaptureSpec, WorkflowTracer
from slm_core.capture.encoding import decode
from slm_core.capture.prices import Price
from slm_core.capture.segment import read_frames
from slm_core.errors import CaptureError
from slm_core.records import Call, Message, Tool, ToolUse

AGENT: dict[str, Any] = {"agent_type": "sub-agent", "agent_name": "booking", "model_used": "gpt-4o"}


def calls(tracer: WorkflowTracer) -> list[Call]:
    segments = sorted(tracer.spool_dir.glob("*.seg"))
    return [decode(f.body) for path in segments for f in read_frames(path, 0, finished=False)]


@pytest.fixture
def tracer(tmp_path: Path) -> WorkflowTracer:
    return WorkflowTracer(CaptureSpec(strict=True), spool_dir=tmp_path)


def test_a_call_comes_back_as_it_was(tracer: WorkflowTracer) -> None:
    before = datetime.now(UTC)
    call_id = tracer.capture_call(
        **AGENT,
        system_prompt="be brief",
        messages=[{"role": "user", "content": "hi"}, Message(role="assistant", content="yes?")],
        user_query="book a table",
        assistant_response="done",
        tools=[Tool(name="book")],
        tool_calls=[ToolUse(name="book", arguments={"seats": 2, "note": "für Ä\x00"})],
        track="toolcall",
        conversation_id="c-1",
        finish_reason="tool_calls",
        prompt_tokens=10,
        completion_tokens=2,
        execution_time=1.25,
        tags={"domain": "travel"},
        idempotency_key="k-1",
    )
    (call,) = calls(tracer)
    assert before <= call.created_at <= datetime.now(UTC)
    assert call == Call(
        id=call_id,
        agent_type="sub-agent",
        agent_name="booking",
        model="gpt-4o",
        conversation_id="c-1",
        messages=(
            Message(role="system", content="be brief"),
            Message(role="user", content="hi"),
            Message(role="assistant", content="yes?"),
            Message(role="user", content="book a table"),
        ),
        tools=(Tool(name="book"),),
        track="toolcall",
        response="done",
        tool_calls=(ToolUse(name="book", arguments={"seats": 2, "note": "für Ä\x00"}),),
        finish_reason="tool_calls",
        success=True,
        prompt_tokens=10,
        completion_tokens=2,
        cost_nanousd=10 * 2500 + 2 * 10_000,
        seconds=1.25,
        created_at=call.created_at,
        tags={"domain": "travel"},
        idempotency_key="k-1",
    )


def test_a_failed_call(tracer: WorkflowTracer) -> None:
    tracer.capture_call(**AGENT, user_query="q", success=False, error="Timeout: 30 s")
    (call,) = calls(tracer)
    assert (call.success, call.error, call.response, call.cost_nanousd) == (
        False,
        "Timeout: 30 s",
        None,
        None,
    )
    assert call.conversation_id == call.id


HUGE = 2**80


@pytest.mark.parametrize(
    "text",
    ["", " ", "\x00", "lone \ud800 and \udfff", "x" * 1_000_000, "\u2028 \U0001f600", '"\\\n\t'],
)
def test_any_text_survives(tracer: WorkflowTracer, text: str) -> None:
    tracer.capture_call(**AGENT, system_prompt=text, user_query=text, assistant_response=text)
    (call,) = calls(tracer)
    assert [m.content for m in call.messages] == [text, text]
    assert call.response == text


def test_any_json_survives(tracer: WorkflowTracer) -> None:
    arguments = {"huge": HUGE, "-": -HUGE, "deep": [[[{"a": None}]]], "\ud800": 1.5, "é": True}
    tracer.capture_call(**AGENT, tool_calls=[{"name": "f", "arguments": arguments}])
    (call,) = calls(tracer)
    assert call.tool_calls[0].arguments == arguments


def test_nan_arguments_become_text(tracer: WorkflowTracer) -> None:
    tracer.capture_call(**AGENT, tool_calls=[{"name": "f", "arguments": {"x": math.nan}}])
    (call,) = calls(tracer)
    assert call.tool_calls == ()
    assert math.isnan(json.loads(call.response or "")["arguments"]["x"])


def test_a_long_conversation_is_kept_whole(tracer: WorkflowTracer) -> None:
    turns = [{"role": "user" if n % 2 else "assistant", "content": f"turn {n}"} for n in range(100)]
    tracer.capture_call(**AGENT, system_prompt="first", messages=turns)
    (call,) = calls(tracer)
    assert [m.content for m in call.messages] == ["first", *(t["content"] for t in turns)]


@pytest.mark.parametrize(
    ("cost", "nanousd"),
    [(0.0, 0), (0.000_000_001, 1), (1.5, 1_500_000_000), (math.nan, None), (math.inf, None)],
)
def test_given_costs(tracer: WorkflowTracer, cost: float, nanousd: int | None) -> None:
    tracer.capture_call(**AGENT, cost_usd=cost, prompt_tokens=1, completion_tokens=1)
    assert calls(tracer)[0].cost_nanousd == nanousd


def test_own_prices(tmp_path: Path) -> None:
    price = Price(
        model="mine",
        effective_from="2020-01-01",
        input_usd_per_million=1,
        output_usd_per_million=2,
    )
    tracer = WorkflowTracer(CaptureSpec(prices=(price,)), spool_dir=tmp_path)
    tracer.capture_call(**{**AGENT, "model_used": "mine"}, prompt_tokens=3, completion_tokens=4)
    assert calls(tracer)[0].cost_nanousd == 3 * 1000 + 4 * 2000


def test_an_endless_time_is_unknown(tracer: WorkflowTracer) -> None:
    tracer.capture_call(**AGENT, execution_time=math.inf)
    assert calls(tracer)[0].seconds == 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"agent_name": None}, "agent_name must be text, not NoneType"),
        ({"model_used": 3}, "model must be text, not int"),
        ({"track": "freestyle"}, "track must be one of"),
        ({"source": "human"}, "source must be"),
        ({"execution_time": "long"}, "real number"),
        ({"tools": [{"name": "f", "parameters": {"maximum": math.nan}}]}, "NaN"),
        ({"messages": 7}, "not iterable"),
        ({"tags": 7}, "not a mapping"),
    ],
)
def test_nonsense_is_refused_loudly_or_counted(
    tmp_path: Path, wrong: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    strict = WorkflowTracer(CaptureSpec(strict=True), spool_dir=tmp_path)
    with pytest.raises(CaptureError, match=said):
        strict.capture_call(**{**AGENT, **wrong})
    patient = WorkflowTracer(spool_dir=tmp_path)
    assert patient.capture_call(**{**AGENT, **wrong}) == ""
    assert patient.health()[:3] == (1, 0, 0)
    assert patient.health().dropped == {"not a call that can be stored": 1}
    assert patient.health().errors == 1
    assert "call not captured" in caplog.text
    assert calls(patient) == []


def test_secrets_never_touch_the_disk(tmp_path: Path) -> None:
    secret = "sk-" + "a1B2" * 12
    spec = CaptureSpec(strict=True, redact_patterns=("Rumpel[a-z]+",))
    tracer = WorkflowTracer(spec, spool_dir=tmp_path)
    tracer.capture_call(
        **AGENT,
        system_prompt=f"use {secret}",
        messages=[{"role": "tool", "content": secret}],
        assistant_response=f"ok {secret}, Rumpelstiltskin",
        tools=[{"name": "f", "description": secret}],
        tool_calls=[{"name": "f", "arguments": {"key": [secret]}}],
        error=RuntimeError(secret),
        tags={"note": secret},
    )
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert secret.encode() not in written
    assert b"Rumpel" not in written
    assert written.count(b"[REDACTED]") == 8


def test_redaction_can_be_switched_off(tmp_path: Path) -> None:
    tracer = WorkflowTracer(CaptureSpec(redact=()), spool_dir=tmp_path)
    secret = "sk-" + "a1B2" * 12
    tracer.capture_call(**AGENT, user_query=secret)
    assert calls(tracer)[0].messages[0].content == secret


def test_samples_keep_conversations_whole(tmp_path: Path) -> None:
    tracer = WorkflowTracer(CaptureSpec(sample_rate=0.25), spool_dir=tmp_path)
    for number in range(2000):
        for _ in range(2):
            tracer.capture_call(**AGENT, conversation_id=f"c-{number}")
    health = tracer.health()
    assert health.captured == 4000 == health.written + health.sampled_out
    assert health.dropped == {}
    assert 0.2 < health.written / 4000 < 0.3
    kept = [call.conversation_id for call in calls(tracer)]
    assert len(kept) == 2 * len(set(kept))


@pytest.mark.parametrize(("rate", "kept"), [(0.0, 0), (1.0, 50)])
def test_sampling_none_and_all(tmp_path: Path, rate: float, kept: int) -> None:
    tracer = WorkflowTracer(CaptureSpec(sample_rate=rate), spool_dir=tmp_path)
    ids = [tracer.capture_call(**AGENT) for _ in range(50)]
    assert len(calls(tracer)) == kept == sum(map(bool, ids))


def test_conversations_nest(tracer: WorkflowTracer) -> None:
    with tracer.conversation("outer", tags={"a": "1", "b": "1"}):
        tracer.capture_call(**AGENT)
        with tracer.conversation(tags={"b": "2"}) as inner:
            tracer.capture_call(**AGENT)
            tracer.capture_call(**AGENT, conversation_id="own", tags={"a": "3"})
    tracer.capture_call(**AGENT)
    first, second, third, last = calls(tracer)
    assert (first.conversation_id, first.tags) == ("outer", {"a": "1", "b": "1"})
    assert (second.conversation_id, second.tags) == (inner, {"a": "1", "b": "2"})
    assert (third.conversation_id, third.tags) == ("own", {"a": "3", "b": "2"})
    assert (last.conversation_id, last.tags) == (last.id, {})


def test_a_conversation_belongs_to_its_thread(tracer: WorkflowTracer) -> None:
    with tracer.conversation("mine"):
        thread = threading.Thread(target=lambda: tracer.capture_call(**AGENT))
        thread.start()
        thread.join()
    assert calls(tracer)[0].conversation_id != "mine"


def test_a_full_spool_can_raise(tmp_path: Path) -> None:
    spec = CaptureSpec(segment_bytes=4096, spool_bytes=4096, on_full="raise")
    tracer = WorkflowTracer(spec, spool_dir=tmp_path)
    while tracer.health().written < 5:
        tracer.capture_call(**AGENT, user_query="x" * 200)
    with pytest.raises(CaptureError, match="spool is full"):
        tracer.capture_call(**AGENT, user_query="x" * 2500)
    assert tracer.health().dropped == {"spool is full": 1}


def test_closing_is_visible_afterwards(tmp_path: Path) -> None:
    with WorkflowTracer(spool_dir=tmp_path) as tracer:
        tracer.capture_call(**AGENT)
        tracer.flush()
    tracer.flush()
    assert tracer.capture_call(**AGENT) == ""
    assert tracer.health().dropped == {"tracer is closed": 1}
    assert len(calls(tracer)) == 1


def test_a_forgotten_tracer_lets_go_of_its_file(tmp_path: Path) -> None:
    tracer = WorkflowTracer(spool_dir=tmp_path)
    tracer.capture_call(**AGENT)
    del tracer
    gc.collect()
    (segment,) = tmp_path.glob("*.seg")
    assert segment.stat().st_size < 4096


def test_the_defaults_lie_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tracer = WorkflowTracer()
    assert tracer.spool_dir == tmp_path / ".slm/spool"
    assert tracer.database_url == f"sqlite:///{tmp_path}/.slm/slm.db"
    assert list(tmp_path.iterdir()) == []


def test_importing_capture_imports_nothing_heavy() -> None:
    code = (
        "import sys, slm_core.capture\n"
        "heavy = 'openai httpx httpx2 sqlalchemy langfuse torch transformers prefect'.split()\n"
        "sys.exit(', '.join(name for name in heavy if name in sys.modules) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
