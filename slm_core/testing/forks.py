"""Children forked from a test process, which do not end with the exit hooks of that process."""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback

CONTEXT = multiprocessing.get_context("fork")


class Fork(CONTEXT.Process):
    """A forked process that does its target and nothing else.

    A child of ``multiprocessing`` inherits what its parent wants done at the end of the
    interpreter and does it too. Where the parent has run flows, that is Prefect's and Dask's
    clearing up: it belongs to threads that a fork does not have, fails, and makes a child that did
    its work end with 1. An error of the target is printed and gives 1 here as well.
    """

    def run(self) -> None:
        """Do the target; end at once."""
        code = 1
        try:
            super().run()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
