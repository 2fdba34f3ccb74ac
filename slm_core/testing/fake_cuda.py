"""A CUDA test whose outcome is chosen: a stand-in for its child process, and for that alone.

It is an interpreter that runs everything as the real one does, but for the module that makes a
GPU work; so all that reads and judges the child's words is the real code.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from slm_core.health.host import HostPaths
from slm_core.testing.fake_driver import FakeDriver, FakeMachine

_SCRIPT = """#!/bin/sh
case " $* " in *active_child*) ;; *) exec {python} "$@";; esac
echo "$CUDA_VISIBLE_DEVICES" >> {folder}/tried
[ -z '{logs}' ] || echo '{logs}' >> {kernel_log}
case " {untried} " in *" $CUDA_VISIBLE_DEVICES "*)
    echo '{{"untried": "torch is not installed"}}'; exit 0;; esac
case " {hangs} " in *" $CUDA_VISIBLE_DEVICES "*)
    echo '{{"doing": "context"}}'; exec sleep 600;; esac
case " {broken} " in *" $CUDA_VISIBLE_DEVICES "*)
    echo '{{"doing": "context"}}'
    echo '{{"error": "CUDA error: unknown error"}}'; exit 0;; esac
echo '{{"checksum": 1}}'
echo '{{"done": true}}'
"""


def fake_cuda(
    machine: FakeMachine,
    *,
    broken: Sequence[int] = (),
    hangs: Sequence[int] = (),
    untried: Sequence[int] = (),
    logs: str = "",
) -> HostPaths:
    """Return ``machine`` with CUDA that works on all GPUs but those named.

    ``logs`` is what the kernel writes when CUDA is tried.
    """
    program = machine.folder / "python"

    def names(indices: Sequence[int]) -> str:
        return " ".join(FakeDriver.uuid(index) for index in indices)

    program.write_text(
        _SCRIPT.format(
            python=sys.executable,
            folder=machine.folder,
            broken=names(broken),
            hangs=names(hangs),
            untried=names(untried),
            logs=logs,
            kernel_log=machine.kernel_log,
        )
    )
    program.chmod(0o755)
    return replace(machine.host, python=str(program))


def gpus_tried(machine: FakeMachine) -> set[str]:
    """Return the UUIDs on which CUDA was tried."""
    path = machine.folder / "tried"
    return set(path.read_text().split()) if path.exists() else set()
