"""``python -m slm_core.cli`` as a process: what scripts, supervisors and people at a shell see."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from typer.testing import CliRunner

from slm_core.cli.app import app
from slm_core.prompting.prefix import PREFIXES
from slm_core.store import open_store
from slm_core.testing.langfuse_receiver import LangfuseReceiver
from slm_core.testing.records import make_decision
from slm_core.testing.tiny_adapter import build_tiny_adapter
from slm_core.tracing import RunTrace

pytestmark = [
    pytest.mark.integration,
    # PEFT 0.21 reads an attribute that transformers 5.23 calls deprecated.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),
]

SLM = [sys.executable, "-m", "slm_core.cli"]


@contextmanager
def started(*words: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Run ``slm``; end it, whatever happens."""
    with subprocess.Popen(
        [*SLM, *words],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def slm(*words: str, status: int = 0, **environment: str) -> tuple[str, str]:
    """Run ``slm`` to its end; return what it wrote to stdout and stderr."""
    with started(*words, **environment) as process:
        out, err = process.communicate(timeout=90)
    assert process.returncode == status, err
    assert "Traceback" not in err
    return out, err


def test_serve_answers_who_has_the_key_and_ends_when_told(tiny_model: Path) -> None:
    words = ("serve", "--model", str(tiny_model), "--name", "tiny", "--port", "0", "--workers", "1")
    with started(*words, SLM_SERVER_API_KEY="secret") as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready["models"] == ["tiny"]
        question = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": 3,
        }
        where = f"{ready['url']}/v1/chat/completions"
        key = {"authorization": "Bearer secret"}
        assert httpx.post(where, json=question).status_code == 401
        answer = httpx.post(where, json=question, headers=key, timeout=60).json()
        assert answer["usage"]["completion_tokens"] <= 3
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert out == "", "stdout is for the ready line"
    assert "server stopped" in err


def test_serve_names_a_model_or_a_store_that_is_missing(tmp_path: Path) -> None:
    folder = str(tmp_path / "model")
    out, err = slm("serve", "--model", folder, "--port", "0", "--workers", "1", status=1)
    assert out == ""
    assert "ModelError" in err
    assert folder in err.splitlines()[-1]
    out, err = slm("serve", "--routes", "--port", "0", status=1)
    assert (out, "StoreUnavailable" in err) == ("", True)


def test_a_promoted_adapter_is_asked(tiny_model: Path, tmp_path: Path, slm_home: Path) -> None:
    adapter = build_tiny_adapter(tmp_path / "adapter", tiny_model, PREFIXES["compact"])
    with open_store(f"sqlite:///{slm_home / 'slm.db'}") as store:
        store.adapters.save(adapter)
        store.decisions.save(make_decision(adapter_id=adapter.id))
    of = ("--agent", "desk", "--track", "structured")
    slm("adapters", "promote", adapter.id, *of, "--reason", "test")

    ask = ("ask", *of, "--max-tokens", "4", "--json", "hello")
    out, err = slm(*ask)
    assert "Warning" not in err
    answer = json.loads(out)
    assert answer["adapter_id"] == adapter.id
    assert 0 < answer["completion_tokens"] <= 4

    # In this process, which has torch already.
    tools = tmp_path / "tools.json"
    offer = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    tools.write_text(json.dumps([offer]))
    here = CliRunner()
    offered = here.invoke(app, [*ask, "--tools", str(tools), "--system", "Be brief."])
    assert json.loads(offered.stdout)["prompt_tokens"] > answer["prompt_tokens"]
    moved = here.invoke(app, [*ask, "--model", str(tmp_path / "moved")])
    assert moved.exit_code == 1
    assert str(tmp_path / "moved") in moved.stderr


def test_spans_reach_langfuse_once_it_is_there(slm_home: Path) -> None:
    with open_store(f"sqlite:///{slm_home / 'slm.db'}") as store:
        with RunTrace("retrain", "run-1", sink=store.spans) as trace, trace.span("train"):
            pass
        assert store.spans.counts()["pending"] == 2

    with LangfuseReceiver() as langfuse:
        keys = {
            "LANGFUSE_PUBLIC_KEY": langfuse.public_key,
            "LANGFUSE_SECRET_KEY": langfuse.secret_key,
            "LANGFUSE_BASE_URL": langfuse.base_url,
        }
        assert langfuse.base_url in slm("traces", "check", **keys)[0]
        langfuse.upload_faults.append(400)
        out, err = slm("traces", "push", status=1, **keys)
        assert out == ""
        assert "0 spans were sent, 2 are left" in err
        assert slm("traces", "push", **keys)[0] == "2 spans sent, 0 left.\n"
        assert sorted(span.name for span in langfuse.spans) == ["retrain", "train"]
        assert slm("traces", "push", **keys)[0] == "0 spans sent, 0 left.\n"


def test_ctrl_c_ends_a_drain_that_waits_for_another(slm_home: Path) -> None:
    lock = slm_home / "spool" / "drain.lock"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with started("calls", "drain") as process:
            deadline = time.monotonic() + 30
            while str(lock) not in {f.path for f in psutil.Process(process.pid).open_files()}:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert (out, "Traceback" in err) == ("", False)
