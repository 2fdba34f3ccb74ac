"""When silence at the driver is a hang: real children that say what a script lets them."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from slm_core.health import nvml_watch
from slm_core.health.host import HostPaths
from slm_core.health.nvml_watch import NvmlWatch

ASKS = """echo '{"doing": "nvmlInit"}'"""
ANSWERS = """echo '{"signs": "GPU-a"}'"""
WORKS = f"for i in 1 2 3 4 5 6; do {ASKS}; {ANSWERS}; sleep 0.1; done"


class Hangs:
    """Watches children that each run ``script`` and then fall silent."""

    def __init__(self, folder: Path, script: str) -> None:
        self.told: list[tuple[str, float, bool]] = []
        self._children = folder / "children"
        python = folder / "python"
        python.write_text(f"#!/bin/sh\necho >> {self._children}\n{script}\nexec sleep 60\n")
        python.chmod(0o755)
        self.watch = NvmlWatch(
            HostPaths(python=str(python)),
            pause_seconds=0.1,
            deadline_seconds=0.5,
            on_line=lambda line: None,
            on_hang=self._on_hang,
        )

    def _on_hang(self, *told: Any) -> None:
        self.told.append(told)

    def run(self, *, most_children: int = 99) -> int:
        """Watch until a hang is told, or that many children were started; return how many."""
        thread = threading.Thread(target=self.watch.run)
        thread.start()
        while thread.is_alive() and self.started < most_children:
            time.sleep(0.02)
        self.watch.stop_for_good()
        thread.join(10)
        assert not thread.is_alive()
        return self.started

    @property
    def started(self) -> int:
        return self._children.read_text().count("\n") if self._children.exists() else 0


def test_a_silence_that_the_driver_has_worked_since_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvml_watch, "_WORKED_SECONDS", 0.2)
    hangs = Hangs(tmp_path, WORKS)
    assert hangs.run(most_children=4) == 4
    assert hangs.told == []


def test_two_silences_in_a_row_are_a_hang(tmp_path: Path) -> None:
    hangs = Hangs(tmp_path, WORKS)  # for less than the half minute that it would take
    assert hangs.run() == 2
    assert [(doing.split()[0], unkillable) for doing, _, unkillable in hangs.told] == [
        ("nvmlInit", False)
    ]


def test_the_start_of_a_child_is_no_sign_of_life_of_the_driver(tmp_path: Path) -> None:
    hangs = Hangs(tmp_path, ASKS)
    began = time.monotonic()
    assert hangs.run() == 2
    ((_, last_life, _),) = hangs.told
    # The second child was not started before the first had been silent for half a second.
    assert last_life - began < 0.4
