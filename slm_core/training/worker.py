"""One rank of an attempt: ``python -m slm_core.training.worker RUN_DIR [--rank R]``.

On several machines torchrun is the parent: ``torchrun ... -m slm_core.training.worker RUN_DIR
--multi-node`` on each, with the folder of a run that was begun on one of them.

A poisoned CUDA context, a leak or a crash ends with this process. It dies with its parent,
turns SIGTERM into a checkpoint, and leaves its last words in ``error-RANK.json``.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import signal
import sys
from pathlib import Path

from slm_core.errors import DiskFull, SlmError
from slm_core.system.durable import is_full_disk
from slm_core.system.parent import die_with_parent
from slm_core.training.durable import disk_full
from slm_core.training.faults import ExitCode
from slm_core.training.heartbeat import Heartbeat
from slm_core.training.last_words import write_error
from slm_core.training.run_folder import RunFolder
from slm_core.training.stop import StopRequest

log = logging.getLogger(__name__)


_CRASHED = 1


def main(run_dir: str, rank: int | None = 0) -> int:
    """Carry out the job in ``run_dir`` and return the exit code.

    Without a ``rank``, torchrun is the parent: it knows the rank, and shows the last words.
    """
    die_with_parent()
    stop = StopRequest()
    # The parent asks a worker that hangs where it is before it ends it.
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    name = f"%(asctime)s rank={rank} %(name)s" if rank else "%(asctime)s %(name)s"
    logging.basicConfig(level=logging.INFO, format=f"{name} %(message)s")
    run = RunFolder(Path(run_dir))
    try:
        job = run.read_job()
        if rank is not None:
            if os.getppid() != job.parent_pid:
                log.error("parent is gone, leaving pid=%d", job.parent_pid)
                return ExitCode.INTERRUPTED
            Heartbeat(run.heartbeat(rank)).beat(0, "load")
        # Here, not above: the safeguards must stand before seconds of imports begin.
        from slm_core.training.engine.attempt import run_job

        return ExitCode.DONE if run_job(run, job, stop, rank or 0) else ExitCode.INTERRUPTED
    except SlmError as error:
        log.error("refused %s: %s", type(error).__name__, error.message)
        return _leave(run, rank, error)
    except Exception as error:
        if is_full_disk(error):
            log.error("disk full: %s", error)
            return _leave(run, rank, disk_full(run.path, error))
        log.exception("crashed")
        _say(run, rank, error)
        return _CRASHED


def _leave(run: RunFolder, rank: int | None, error: SlmError) -> ExitCode:
    _say(run, rank, error)
    return ExitCode.DISK_FULL if isinstance(error, DiskFull) else ExitCode.REFUSED


def _say(run: RunFolder, rank: int | None, error: BaseException) -> None:
    if rank is None:
        return
    try:
        write_error(run.error(rank), error)
    except (OSError, DiskFull) as problem:
        # The exit code still tells what matters most.
        log.error("no room for the last words: %s", problem)


def run_as_process() -> None:
    """Read the command line, do the work, and leave."""
    parser = argparse.ArgumentParser(description="One rank of a training attempt.")
    parser.add_argument("run_dir")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--multi-node", action="store_true", help="torchrun is the parent")
    said = parser.parse_args()
    code = main(said.run_dir, None if said.multi_node else said.rank)
    if code != ExitCode.DONE:
        # All is said. Taking apart a poisoned CUDA context, or a process group whose other
        # ranks are gone, may never end.
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    run_as_process()
