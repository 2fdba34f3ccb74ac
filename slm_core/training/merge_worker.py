"""The process that merges: ``python -m slm_core.training.merge_worker DRAFT_DIR``.

It dies with its parent, and leaves typed errors in ``error.json``.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from slm_core.errors import SlmError
from slm_core.system.parent import die_with_parent
from slm_core.training.durable import write_json
from slm_core.training.faults import ExitCode
from slm_core.training.last_words import write_error
from slm_core.training.merged_model import MergeOrder


def main(draft: Path) -> ExitCode:
    """Carry out the order in ``draft`` and return the exit code."""
    die_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    order = MergeOrder.model_validate_json((draft / "order.json").read_bytes())
    if os.getppid() != order.parent_pid:
        return ExitCode.INTERRUPTED
    try:
        # Here, not above: the safeguards must stand before seconds of imports begin.
        from slm_core.training.engine.merging import merge_and_compare

        dtype, check = merge_and_compare(order)
    except SlmError as error:
        write_error(draft / "error.json", error)
        return ExitCode.REFUSED
    write_json(draft / "result.json", {"dtype": dtype, "check": check.model_dump()})
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
