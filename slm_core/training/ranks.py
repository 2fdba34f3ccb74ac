"""One rank of an attempt: a worker process in a group of its own, and its heartbeat."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

from slm_core.training.heartbeat import HangWatch
from slm_core.training.plan import Plan
from slm_core.training.run_folder import RunFolder

log = logging.getLogger(__name__)

# CPU threads that wait for each other sleep instead of spinning. Beside other busy processes
# spinning made the training of a small model 5 to 8 times slower.
_POLITE = "OMP_WAIT_POLICY=passive"

# Kept, for Python complains about a living process that nobody holds any more.
_abandoned: list[subprocess.Popen[bytes]] = []


@dataclass
class Rank:
    """A worker process that was started."""

    number: int
    process: subprocess.Popen[bytes]
    watch: HangWatch
    given_up: bool = False
    """It outlived SIGKILL; nobody waits for it any more."""

    def give_up(self) -> None:
        """Leave a worker that outlived SIGKILL to the kernel."""
        self.given_up = True
        _abandoned.append(self.process)

    def hangs(self, now: float) -> bool:
        """Return whether its silence has lasted too long; to be asked often."""
        return self.watch.silent_too_long(now) is not None

    def exit_code(self) -> int | None:
        """Return the exit code of a worker that has ended; nothing that it started outlives it."""
        process = self.process
        if process.returncode is None:
            ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
            if os.waitid(os.P_PID, process.pid, ended) is None:
                return None
            # Before it is reaped: until then nobody else can be given its id.
            self._signal_group(signal.SIGKILL)
            process.wait()
        return process.returncode

    def send(self, number: signal.Signals) -> None:
        """Signal the worker and all that it started; nothing when it has ended."""
        if self.exit_code() is None:
            self._signal_group(number)

    def _signal_group(self, number: signal.Signals) -> None:
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            log.debug("training worker was gone pid=%d", self.process.pid)


def start_rank(
    run: RunFolder,
    plan: Plan,
    number: int,
    output: BinaryIO,
    lock: int,
    hang_floors: Mapping[str, float],
) -> Rank:
    """Start rank ``number`` of the present job."""
    watch = HangWatch(run.heartbeat(number), floors=hang_floors)
    module = [sys.executable, "-m", "slm_core.training.worker", str(run.path)]
    process = subprocess.Popen(
        ["env", *environment(plan), *module, "--rank", str(number)],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        # Ctrl-C in a terminal reaches only us; we decide what the worker is told.
        process_group=0,
        # The lock lives as long as either process does.
        pass_fds=(lock,),
    )
    log.info("training worker started rank=%d pid=%d run=%s", number, process.pid, run.path)
    return Rank(number, process, watch)


def environment(plan: Plan) -> list[str]:
    """Return what the plan sets in a worker's environment, as ``NAME=VALUE``."""
    said = [_POLITE]
    if plan.gpus:
        said.append(f"CUDA_VISIBLE_DEVICES={','.join(plan.gpus)}")
    if plan.expandable_segments:
        said.append("PYTORCH_ALLOC_CONF=expandable_segments:True")
    return said
