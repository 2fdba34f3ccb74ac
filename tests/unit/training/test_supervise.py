"""What the parent learns of ranks that end because one of them was asked to stop."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from slm_core.training.events import EventFile
from slm_core.training.faults import ExitCode
from slm_core.training.heartbeat import HangWatch
from slm_core.training.ranks import Rank
from slm_core.training.supervise import Ended, Limits, _watch


def ended(folder: Path, *scripts: str) -> Ended:
    """Return how processes ended, of which each runs one script, once all have begun."""
    ranks: list[Rank] = []
    for number, script in enumerate(scripts):
        ready = folder / f"ready-{number}"
        wait = f"until [ $(ls {folder}/ready-* | wc -l) = {len(scripts)} ]; do sleep 0.01; done"
        command = ["sh", "-c", f"{script.split(';')[0]}; touch {ready}; {wait}; {script}"]
        process = subprocess.Popen(command, process_group=0)
        ranks.append(Rank(number, process, HangWatch(folder / f"beat-{number}")))
    while len(list(folder.glob("ready-*"))) < len(scripts):
        time.sleep(0.01)
    limits = Limits(stop_grace_seconds=1.0)
    return _watch(ranks, EventFile(folder / "events.jsonl"), lambda event: None, None, limits)


FOREVER = "while :; do sleep 0.02; done"


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
