"""The active part: real torch processes, on the CPU in place of a GPU, and gloo for NCCL."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slm_core.health import HealthSpec, active, check_gpus
from slm_core.health.active import CudaTrial, check_collective, check_trials, try_gpus
from slm_core.health.host import HostPaths
from slm_core.records import Health
from slm_core.testing.fake_driver import FakeDriver, FakeMachine, compiler

pytestmark = pytest.mark.integration

SMALL = HealthSpec(
    matmul_size=128,
    matmul_repeats=2,
    copy_bytes=1 << 16,
    copy_warn_gigabytes_per_second=0,
    cuda_seconds=60,
    collective_seconds=60,
)


@pytest.fixture(scope="module")
def trials() -> tuple[CudaTrial, ...]:
    return try_gpus(("A", "B"), SMALL, HostPaths(), device="cpu")


def test_two_that_work_agree_to_the_bit(trials: tuple[CudaTrial, ...]) -> None:
    assert [(trial.gpu, trial.ending) for trial in trials] == [("A", "passed"), ("B", "passed")]
    assert trials[0].facts["exact"]
    assert trials[0].facts["checksum"] == trials[1].facts["checksum"]
    checks = check_trials(trials, SMALL)
    assert {(one.name, one.gpu) for one in checks} == {
        (name, gpu) for name in ("cuda", "copies") for gpu in "AB"
    }
    assert {one.health for one in checks} == {Health.PASS}


def test_the_sum_that_the_product_is_held_against_is_the_right_one(
    trials: tuple[CudaTrial, ...],
) -> None:
    size = SMALL.matmul_size
    row, column = np.arange(size)[:, None], np.arange(size)[None, :]
    mixed = [(row * 31 + column * 17 + (row * column + seed) % 97) % 7 - 3 for seed in (0, 1)]
    product = (mixed[0] @ mixed[1]).astype(np.int32)
    assert zlib.crc32(product.tobytes()) == trials[0].facts["checksum"]


def test_a_card_that_computes_otherwise_fails(trials: tuple[CudaTrial, ...]) -> None:
    # A wrong product cannot be had from a sound processor; what is made of it can be tested.
    odd = trials[0]._replace(gpu="C", facts=trials[0].facts | {"checksum": 1})
    endings = {t.gpu: t.ending for t in active._compare((*trials, odd))}
    assert endings == {"A": "passed", "B": "passed", "C": "failed"}


def test_slow_copies_warn(trials: tuple[CudaTrial, ...]) -> None:
    spec = SMALL.model_copy(update={"copy_warn_gigabytes_per_second": 1e6})
    copies = [one for one in check_trials(trials, spec) if one.name == "copies"]
    assert {one.health for one in copies} == {Health.WARN}


def test_all_together() -> None:
    check = check_collective(("A", "B"), SMALL, HostPaths(), device="cpu")
    assert check.health is Health.PASS, check


@pytest.mark.parametrize(
    ("doing", "health"), [("all-reduce", Health.FAIL), ("import torch", Health.UNKNOWN)]
)
def test_an_all_reduce_that_never_ends(tmp_path: Path, doing: str, health: Health) -> None:
    says = f"""case "$*" in *"--rank 1"*) echo '{{"doing": "{doing}"}}';;
*) echo '{{"doing": "all-reduce"}}';; esac; exec sleep 60"""
    python = script(tmp_path, says)
    spec = SMALL.model_copy(update={"collective_seconds": 0.7})
    check = check_collective(("A", "B"), spec, HostPaths(python=python))
    assert check.health is health
    assert check.seconds < 3


def script(folder: Path, text: str) -> str:
    program = folder / "python"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize(
    ("said", "end", "health", "words"),
    [
        ('{"doing": "create a context"}', "exec sleep 60", Health.FAIL, "create a context"),
        ('{"doing": "import torch"}', "exec sleep 60", Health.UNKNOWN, "too busy"),
        ("", "exec sleep 60", Health.UNKNOWN, "too busy"),
        ('{"doing": "multiply matrices"}', "kill -SEGV $$", Health.FAIL, "-11"),
        ('{"error": "CUDA error: unknown error"}', "exit 0", Health.FAIL, "unknown error"),
        ('{"error": "CUDA out of memory."}', "exit 0", Health.UNKNOWN, "in use"),
        ('{"exact": false}\n{"done": true}', "exit 0", Health.FAIL, "the product is wrong"),
        ('{"copied_right": false}\n{"done": true}', "exit 0", Health.FAIL, "come back changed"),
        ('{"exact": true}', "exit 0", Health.FAIL, "ended with 0"),
        ("nonsense", "exit 1", Health.FAIL, "ended with 1"),
    ],
)
def test_what_a_child_in_trouble_leaves(
    tmp_path: Path, said: str, end: str, health: Health, words: str
) -> None:
    python = script(tmp_path, f"cat <<'SAID'\n{said}\nSAID\n{end}")
    spec = SMALL.model_copy(update={"cuda_seconds": 0.7})
    (check,) = check_trials(try_gpus(("A",), spec, HostPaths(python=python)), spec)
    assert check.health is health
    assert words in check.message


def test_each_child_sees_one_gpu_by_its_uuid(tmp_path: Path) -> None:
    python = script(tmp_path, 'echo "{\\"error\\": \\"sees $CUDA_VISIBLE_DEVICES\\"}"')
    trials = try_gpus(("GPU-1", "MIG-2"), SMALL, HostPaths(python=python))
    assert ["sees GPU-1" in trials[0].words, "sees MIG-2" in trials[1].words] == [True, True]


@pytest.mark.skipif(compiler() is None, reason="the fake driver needs a C compiler")
def test_survivors_are_tried_and_only_they_may_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = FakeDriver(tmp_path / "driver")
    for name, value in driver.environment.items():
        monkeypatch.setenv(name, value)
    driver.set(count=3, recovery=0, **{"lost.0": 1})
    machine = FakeMachine(tmp_path / "machine", gpus=3)
    rates = {f"{way}_device_gigabytes_per_second": 12.0 for way in ("to", "from")}
    works = json.dumps({"checksum": 7} | rates)
    # The last GPU fails in CUDA although NVML says nothing against it.
    python = script(
        tmp_path,
        f"""case "$*$CUDA_VISIBLE_DEVICES" in
*active_child*{FakeDriver.uuid(2)}) echo '{{"error": "CUDA error: unknown error"}}';;
*active_child*{FakeDriver.uuid(1)}) echo '{works}'; echo '{{"done": true}}';;
*active_child*) exit 9;;
*) exec {sys.executable} "$@";;
esac""",
    )
    seen: list[str] = []
    report = check_gpus(
        SMALL,
        host=replace(machine.host, python=python),
        on_progress=lambda done, total, what: seen.append(f"{done}/{total} {what}"),
    )
    assert [gpu.uuid for gpu in report.usable] == [FakeDriver.uuid(1)]
    tried = {one.gpu: one.health for one in report.checks if one.name == "cuda"}
    assert tried == {FakeDriver.uuid(1): Health.PASS, FakeDriver.uuid(2): Health.FAIL}
    assert "2/4 CUDA on 2 GPUs" in seen
    assert seen[-1] == "4/4 done"


def test_no_torch_and_no_driver_library_in_the_process_that_asks() -> None:
    program = (
        "import sys; from slm_core.health import check_gpus, HealthSpec; "
        "check_gpus(HealthSpec(), active=False); "
        "print(sorted({'torch', 'pynvml', 'numpy', 'prefect'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
