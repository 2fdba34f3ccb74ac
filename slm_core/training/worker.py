"""One attempt at a run, in its own process: ``python -m slm_core.training.worker RUN_DIR``.

A poisoned CUDA context, a leak or a crash ends with this process. It dies with its parent,
turns SIGTERM into a checkpoint, and leaves typed errors in ``error.json``.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from slm_core.errors import SlmError
from slm_core.training.faults import ExitCode, write_error
from slm_core.training.run_folder import RunFolder
from slm_core.training.stop import StopRequest, die_with_parent

log = logging.getLogger(__name__)


def main(run_dir: str) -> ExitCode:
    """Carry out the job in ``run_dir`` and return the exit code."""
    die_with_parent()
    stop = StopRequest()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    run = RunFolder(Path(run_dir))
    try:
        job = run.read_job()
        if os.getppid() != job.parent_pid:
            log.error("parent is gone, leaving pid=%d", job.parent_pid)
            return ExitCode.INTERRUPTED
        # Here, not above: the safeguards must stand before seconds of imports begin.
        from slm_core.training.attempt import run_job

        return ExitCode.DONE if run_job(run, job, stop) else ExitCode.INTERRUPTED
    except SlmError as error:
        log.error("refused %s: %s", type(error).__name__, error.message)
        write_error(run.error, error)
        return ExitCode.REFUSED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
