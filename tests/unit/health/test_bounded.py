"""Probes that end, hang, hang in state D, and cannot even be killed."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from slm_core.health import bounded
from slm_core.testing.fake_driver import FakeMachine, compiler

needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C compiler on this machine")


def test_a_probe_that_ends_tells_code_output_and_errors() -> None:
    outcome = bounded.run(["sh", "-c", "echo out; echo err >&2; exit 3"], deadline_seconds=10)
    assert outcome[:3] == (3, "out\n", "err\n")
    assert not outcome.hung
    assert outcome.state is None


def test_a_signal_is_a_negative_code() -> None:
    assert bounded.run(["sh", "-c", "kill -SEGV $$"], deadline_seconds=10).code == -signal.SIGSEGV


def test_a_missing_program_is_an_outcome_and_not_an_exception() -> None:
    outcome = bounded.run(["no-such-program"], deadline_seconds=10)
    assert outcome.code == bounded.NOT_STARTED
    assert "no-such-program" in outcome.stderr


def test_variables_are_added_to_the_inherited_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INHERITED", "old")
    shell = ["sh", "-c", 'echo "$INHERITED $ADDED"']
    assert bounded.run(shell, deadline_seconds=10, env={"ADDED": "new"}).stdout == "old new\n"


def test_a_hanging_probe_is_ended_at_its_deadline_and_its_output_kept(tmp_path: Path) -> None:
    # The grandchild must end too, or it would keep the driver open.
    note = tmp_path / "pid"
    shell = f"sleep 60 & echo $! > {note}; echo begun; wait"
    outcome = bounded.run(["sh", "-c", shell], deadline_seconds=0.4)
    assert outcome.hung
    assert outcome.code is None
    assert outcome.stdout == "begun\n"
    assert not outcome.unkillable
    assert outcome.state == "S"
    assert 0.4 <= outcome.seconds < 1.5
    assert _gone(int(note.read_text()))


def test_more_output_than_a_pipe_holds_does_not_block() -> None:
    program = "import sys; sys.stdout.write('x' * 1_000_000)"
    outcome = bounded.run([sys.executable, "-c", program], deadline_seconds=10)
    assert len(outcome.stdout) == 1_000_000


@needs_compiler
def test_state_d_is_seen(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path)
    machine.nvidia_smi_in_state_d()
    outcome = bounded.run([machine.host.nvidia_smi], deadline_seconds=0.4)
    assert outcome.hung
    assert outcome.state == "D"


@pytest.fixture
def deaf_to_kill(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The kernel takes SIGKILL and does nothing, as for a process inside a broken driver."""
    asked: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "killpg", lambda pid, number: asked.append(pid))
        yield asked
    for pid in asked:
        os.killpg(pid, signal.SIGKILL)


def test_a_probe_that_cannot_be_killed_is_left_behind(deaf_to_kill: list[int]) -> None:
    began = time.monotonic()
    outcome = bounded.run(["sleep", "60"], deadline_seconds=0.2, grace_seconds=0.2)
    assert time.monotonic() - began < 1.5
    assert outcome.unkillable
    assert bounded.state_letter(deaf_to_kill[0]) == "S"
    # Once it does end, the next run takes its remains away.
    os.kill(deaf_to_kill[0], signal.SIGKILL)
    deadline = time.monotonic() + 5
    while bounded.state_letter(deaf_to_kill[0]) is not None and time.monotonic() < deadline:
        bounded.run(["true"], deadline_seconds=5)
    assert bounded.state_letter(deaf_to_kill.pop()) is None


def _gone(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if bounded.state_letter(pid) in (None, "Z"):
            return True
        time.sleep(0.02)
    return False
