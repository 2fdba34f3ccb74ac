"""One number of NVML means one thing, whoever meets it."""

from __future__ import annotations

from pathlib import Path

import pytest

from slm_core.health import nvidia_smi
from slm_core.health.bounded import Outcome
from slm_core.health.evidence import Evidence, NvmlAnswer, NvmlSeen
from slm_core.health.host import HostPaths
from slm_core.health.host_files import HostFiles
from slm_core.health.nvml import NvmlAnswers, check_driver
from slm_core.health.nvml_codes import SMI_STATUSES, meaning_of
from slm_core.health.triage import triage
from slm_core.records import EvidenceTier, NextAction

ENDED = Outcome(1, "", "", 0.1, hung=False, unkillable=False, state=None)


def by_preflight(code: int, in_container: bool) -> object:
    answers = NvmlAnswers(ENDED, code, "", "", "", None, 0, (), finished=False)
    files = HostFiles(finished=True, in_container=in_container)
    return check_driver(answers, files, lost=False).facts["action"]


def by_post_mortem(code: int, in_container: bool) -> object:
    seen = NvmlSeen(answer=NvmlAnswer.ERROR, code=code, words="")
    evidence = Evidence(
        fault_kind="cuda_error",
        gpus=("GPU-a",),
        tier=EvidenceTier.KERNEL_LOG,
        nvml=seen,
        in_container=in_container,
    )
    return triage(evidence).action


def by_nvidia_smi(folder: Path, code: int, in_container: bool) -> object:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nexit {code}\n")
    program.chmod(0o755)
    host = HostPaths(nvidia_smi=str(program))
    answer = nvidia_smi.ask(host, in_container=in_container, deadline_seconds=5)
    return answer.check.facts["action"]


@pytest.mark.parametrize("in_container", [True, False])
@pytest.mark.parametrize("code", sorted(SMI_STATUSES - {15}))
def test_all_who_meet_a_number_say_the_same(tmp_path: Path, code: int, in_container: bool) -> None:
    known = meaning_of(code, in_container=in_container)
    assert known is not None
    assert by_preflight(code, in_container) == known.action
    assert by_post_mortem(code, in_container) == known.action
    assert by_nvidia_smi(tmp_path, code, in_container) == known.action


def test_a_library_that_is_missing_is_mounted_or_installed() -> None:
    inside, outside = (meaning_of(12, in_container=where) for where in (True, False))
    assert inside is not None
    assert outside is not None
    assert inside.action is NextAction.RECREATE_CONTAINER
    assert outside.action is NextAction.RELOAD_DRIVER


def test_what_two_causes_have_in_common_is_not_in_the_table() -> None:
    assert meaning_of(999, in_container=False) is None
