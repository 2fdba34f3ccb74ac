"""`make status` and `make down` where nothing runs, and what a wrong setting says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def run(command: str, cwd: Path = ROOT, **environ: str) -> subprocess.CompletedProcess[str]:
    script = [sys.executable, "-m", "slm_core.local_stack", command]
    environ["PYTHONPATH"] = str(ROOT)
    return subprocess.run(script, cwd=cwd, env=environ, capture_output=True, text=True)


def test_status_of_a_stack_that_is_down(tmp_path: Path) -> None:
    result = run("status", SLM_HOME=str(tmp_path))
    assert result.returncode == 0
    assert "`make up` starts it" in result.stdout


def test_down_of_a_stack_that_is_down(tmp_path: Path) -> None:
    result = run("down", SLM_HOME=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "The stack is down." in result.stdout


def test_down_leaves_the_pointer_of_another_stack(tmp_path: Path) -> None:
    pointer = tmp_path / "prefect.toml"
    text = (
        '# Written by `make up`, removed by `make down`.\n[api]\nurl = "http://127.0.0.1:1/api"\n'
    )
    pointer.write_text(text)
    result = run("down", cwd=tmp_path, SLM_HOME=str(tmp_path / "home"))
    assert result.returncode == 0, result.stderr
    assert pointer.read_text() == text


def test_a_wrong_setting_is_one_sentence_and_no_traceback(tmp_path: Path) -> None:
    result = run("up", SLM_HOME=str(tmp_path), SLM_LOG_LEVEL="loud")
    assert result.returncode == 1
    assert "SLM_LOG_LEVEL" in result.stderr
    assert "Traceback" not in result.stderr
