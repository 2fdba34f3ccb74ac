"""What the parent learns of ranks that hang, or end because one of them was asked to stop."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from slm_core.training.events import EventFile
from slm_core.training.faults import ExitCode
from slm_core.training.heartbeat import FLOOR_SECONDS, HangWatch, Heartbeat, Phase
from slm_core.training.ranks import Rank
from slm_core.training.supervise import Ended, Limits, _watch


def ended(
    folder: Path,
    *scripts: str,
    phases: Sequence[Phase] = (),
    floors: Mapping[str, float] = FLOOR_SECONDS,
) -> Ended:
    """Return how processes ended, of which each runs one script, once all have begun.

    Each gives one sign of life, in its phase, if it has one.
    """
    ranks: list[Rank] = []
    for number, script in enumerate(scripts):
        ready = folder / f"ready-{number}"
        wait = f"until [ $(ls {folder}/ready-* | wc -l) = {len(scripts)} ]; do sleep 0.01; done"
        command = ["sh", "-c", f"{script.split(';')[0]}; touch {ready}; {wait}; {script}"]
        process = subprocess.Popen(command, process_group=0)
        ranks.append(Rank(number, process, HangWatch(folder / f"beat-{number}", floors=floors)))
    while len(list(folder.glob("ready-*"))) < len(scripts):
        time.sleep(0.01)
    for number, phase in enumerate(phases):
        Heartbeat(folder / f"beat-{number}").beat(1, phase)
    limits = Limits(stop_grace_seconds=1.0, hung_grace_seconds=0.1, stack_seconds=0.1)
    return _watch(ranks, EventFile(folder / "events.jsonl"), lambda event: None, None, limits)


FOREVER = "while :; do sleep 0.02; done"
SILENT = f"true; {FOREVER}"


def test_what_a_rank_says_while_it_is_stopped_counts(tmp_path: Path) -> None:
    full, stopped = ExitCode.DISK_FULL, ExitCode.INTERRUPTED
    found = ended(tmp_path, f"trap 'exit {full:d}' TERM; {FOREVER}", f"true; exit {stopped:d}")
    assert found.codes == {0: full, 1: stopped}


def test_a_rank_that_we_kill_or_that_its_peer_took_along_says_nothing(tmp_path: Path) -> None:
    stopped = ExitCode.INTERRUPTED
    found = ended(
        tmp_path,
        f"trap '' TERM; {FOREVER}",
        f"trap 'exit 1' TERM; {FOREVER}",
        f"true; exit {stopped:d}",
    )
    assert found.codes == {2: stopped}
    assert found.unkillable == ()


@pytest.mark.parametrize("busy", ["probe", "save"])
def test_a_rank_that_waits_for_one_that_compiles_or_saves_does_not_hang(
    tmp_path: Path, busy: Phase
) -> None:
    floors = {**FLOOR_SECONDS, "train": 0.2, busy: 1.0}
    found = ended(tmp_path, SILENT, SILENT, phases=("train", busy), floors=floors)
    assert (found.hung_rank, found.phase) == (1, busy)
    assert found.silent_seconds > 1.0


@pytest.mark.parametrize("other", ["train", "eval"])
def test_a_rank_that_hangs_in_its_step_is_ended(tmp_path: Path, other: Phase) -> None:
    floors = {**FLOOR_SECONDS, "train": 0.2}
    found = ended(tmp_path, SILENT, SILENT, phases=("train", other), floors=floors)
    assert found.phase == "train"
