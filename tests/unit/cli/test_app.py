"""All commands: help, versions, and how errors end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

import slm_core
from slm_core.cli.app import app
from slm_core.store import Store

MEASURE = """
import sys, time
start = time.process_time()
from slm_core.cli import main
sys.argv = ["slm", "--help"]
try:
    main()
finally:
    print(time.process_time() - start, *sys.modules, file=sys.stderr)
"""
HEAVY = {"torch", "transformers", "sqlalchemy", "openai", "langfuse", "numpy", "uvicorn"}


def commands(command: Any, *words: str) -> dict[str, Any]:
    """Return every group and command by its words."""
    found = {" ".join(words): command}
    for name, part in getattr(command, "commands", {}).items():
        found |= commands(part, *words, name)
    return found


def test_every_command_says_what_it_does(slm: Any) -> None:
    found = commands(typer.main.get_command(app))
    assert len(found) > 25
    assert [words for words, command in found.items() if not command.help] == []
    for words in found:
        assert "Usage" in slm(*words.split(), "--help").stdout


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    def measure() -> tuple[float, set[str]]:
        done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True)
        seconds, *modules = done.stderr.split()
        return float(seconds), set(modules)

    measured = [measure() for _ in range(4)]  # the least disturbed one counts
    assert measured[0][1] & HEAVY == set()
    # Half of it on a quiet machine; of that, half is the drawing of frames by Rich.
    assert min(seconds for seconds, _ in measured) < 1.0


def test_version(slm: Any) -> None:
    assert slm("--version").stdout == f"slm {slm_core.__version__}\n"


def test_wrong_settings_are_all_named(slm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLM_TORCH_THREADS", "many")
    monkeypatch.setenv("SLM_HOMME", "/tmp")
    said = slm.refused("runs", "list", status=2)
    assert "SLM_TORCH_THREADS" in said
    assert "did you mean SLM_HOME?" in said


def test_a_command_that_reads_makes_no_store(slm: Any, slm_home: Path) -> None:
    said = slm.refused("calls", "stats")
    assert f"no store at {slm_home / 'slm.db'}" in said
    assert "slm store upgrade" in said
    assert not slm_home.exists()


def test_a_database_that_is_gone_or_damaged_is_named(
    slm: Any, store: Store, slm_home: Path
) -> None:
    store.close()
    file = slm_home / "slm.db"
    file.write_bytes(b"this is no database" * 1000)
    assert "no SQLite database" in slm.refused("routes", "list")
    file.unlink()
    assert str(file) in slm.refused("routes", "list")


def test_a_server_that_does_not_answer_is_named_without_its_password(
    slm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLM_DATABASE_URL", "postgresql://ann:hunter2@127.0.0.1:1/slm")
    said = slm.refused("calls", "stats")
    assert said.startswith("StoreUnavailable")
    assert "127.0.0.1" in said
    assert "hunter2" not in said


def test_an_empty_store_is_no_error(slm: Any, store: Store) -> None:
    for group in ("datasets", "runs", "evaluations", "adapters", "routes"):
        assert " yet" in slm(group, "list").stdout
        assert slm.json(group, "list") == []
