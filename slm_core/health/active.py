"""CUDA tried on each GPU, in one process per GPU: the only proof that a GPU works.

All GPUs are tried at the same time. Those that pass then add numbers up together.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

from slm_core.health import bounded
from slm_core.health.child_output import STARTING, command, doing, how_it_hung, last_words, objects
from slm_core.health.findings import finding
from slm_core.health.host import HostPaths
from slm_core.health.spec import HealthSpec
from slm_core.records import Health, HealthCheck, NextAction

Device = Literal["cuda", "cpu"]
"""``cpu`` lets the same test run where there is no GPU."""
Ending = Literal["passed", "failed", "hung", "untried"]

IMPORTING = "import torch"
# All processes are on this machine; other interfaces may not even connect to themselves.
_LOOPBACK = {"NCCL_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo"}


class CudaTrial(NamedTuple):
    """What came of trying one GPU."""

    gpu: str
    ending: Ending
    words: str
    """What went wrong, as the child said it."""
    facts: dict[str, Any]
    seconds: float
    unkillable: bool = False


def try_gpus(
    gpus: Sequence[str], spec: HealthSpec, host: HostPaths, *, device: Device = "cuda"
) -> tuple[CudaTrial, ...]:
    """Try each of ``gpus`` (UUIDs); returns within ``spec.cuda_seconds``, whatever hangs."""
    work = (
        "--size",
        spec.matmul_size,
        "--repeats",
        spec.matmul_repeats,
        "--bytes",
        spec.copy_bytes,
    )

    def one(gpu: str) -> CudaTrial:
        argv = _argv(host, "work", device, *work)
        env = {"CUDA_VISIBLE_DEVICES": gpu} if device == "cuda" else {"OMP_NUM_THREADS": "1"}
        return _judge(gpu, bounded.run(argv, deadline_seconds=spec.cuda_seconds, env=env))

    if not gpus:
        return ()
    with ThreadPoolExecutor(len(gpus)) as pool:
        return _compare(tuple(pool.map(one, gpus)))


def check_trials(trials: Sequence[CudaTrial], spec: HealthSpec) -> list[HealthCheck]:
    """Return one check per GPU that was tried, and one on its copies."""
    found: list[HealthCheck] = []
    for trial in trials:
        gpu, facts = trial.gpu, trial.facts
        if trial.ending == "untried":
            said = f"CUDA was not tried on {gpu}: {trial.words}."
            found.append(finding("cuda", Health.UNKNOWN, said, gpu=gpu, seconds=trial.seconds))
            continue
        if trial.ending != "passed":
            said = f"CUDA does not work on {gpu}: {trial.words}"
            found.append(
                finding(
                    "cuda",
                    Health.FAIL,
                    said,
                    gpu=gpu,
                    action=NextAction.REBOOT,
                    seconds=trial.seconds,
                    unkillable=trial.unkillable,
                    **facts,
                )
            )
            continue
        said = "Context, exact matrix product and copies work."
        found.append(finding("cuda", Health.PASS, said, gpu=gpu, seconds=trial.seconds, **facts))
        rates = (
            facts["to_device_gigabytes_per_second"],
            facts["from_device_gigabytes_per_second"],
        )
        slow = min(rates) < spec.copy_warn_gigabytes_per_second
        said = f"Copies at {rates[0]:.1f} GB/s to it and {rates[1]:.1f} GB/s from it."
        if slow:
            said += " That is slow; look at slot, riser and link width."
        health = Health.WARN if slow else Health.PASS
        found.append(finding("copies", health, said, gpu=gpu, gigabytes_per_second=rates))
    return found


def check_collective(
    gpus: Sequence[str], spec: HealthSpec, host: HostPaths, *, device: Device = "cuda"
) -> HealthCheck:
    """Let ``gpus`` add up numbers together; returns within ``spec.collective_seconds``."""

    def one(rank: int, meet: Path) -> bounded.Outcome:
        options = ("--rank", rank, "--world", len(gpus), "--meet", meet)
        seconds = ("--seconds", spec.collective_seconds)
        argv = _argv(host, "collective", device, *options, *seconds)
        env = _LOOPBACK | ({"CUDA_VISIBLE_DEVICES": gpus[rank]} if device == "cuda" else {})
        return bounded.run(argv, deadline_seconds=spec.collective_seconds, env=env)

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(gpus)) as pool:
        meet = Path(folder) / "meet"
        outcomes = list(pool.map(lambda rank: one(rank, meet), range(len(gpus))))
    trials = [_judge(gpu, outcome) for gpu, outcome in zip(gpus, outcomes, strict=True)]
    seconds = max(trial.seconds for trial in trials)
    bad = {trial.gpu: trial.words for trial in trials if trial.ending != "passed"}
    if not bad:
        said = f"All-reduce over {len(gpus)} GPUs is right."
        return finding("collective", Health.PASS, said, seconds=seconds, gpus=len(gpus))
    untried = [trial.words for trial in trials if trial.ending == "untried"]
    if untried:  # the others then waited for it, which says nothing against them
        said = f"The all-reduce was not tried: {untried[0]}."
        return finding("collective", Health.UNKNOWN, said, seconds=seconds)
    said = (
        f"Each of {len(gpus)} GPUs works alone, but not all together: "
        f"{next(iter(bad.values()))}. Train on one GPU, and look at NVLink, peer-to-peer and NCCL."
    )
    return finding("collective", Health.FAIL, said, seconds=seconds, gpus=bad)


def _argv(host: HostPaths, what: str, device: Device, *options: object) -> list[str]:
    return command(host, "active_child", what, "--device", device, *options)


def _judge(gpu: str, outcome: bounded.Outcome) -> CudaTrial:
    lines = objects(outcome)
    facts = {k: v for line in lines for k, v in line.items() if k not in ("doing", "done")}

    def ended(ending: Ending, words: str) -> CudaTrial:
        return CudaTrial(gpu, ending, words, facts, outcome.seconds, outcome.unkillable)

    if outcome.hung and doing(lines) in (STARTING, IMPORTING):
        words = (
            f"within {outcome.seconds:.1f} s torch was not even loaded; this machine is too busy"
        )
        return ended("untried", words)
    if outcome.hung:
        return ended("hung", f"{how_it_hung(outcome)}, in: {doing(lines)}")
    if "untried" in facts:
        return ended("untried", str(facts.pop("untried")))
    if "out of memory" in str(facts.get("error")):
        return ended("untried", f"its memory is in use: {facts.pop('error')}")
    if "error" in facts:
        return ended("failed", f"{facts['error']} (in: {doing(lines)})")
    wrong = [
        words
        for key, words in (
            ("finite", "the product holds infinities or NaN"),
            ("exact", "the product is wrong"),
            ("same_each_time", "the product differs from time to time"),
            ("copied_right", "copies come back changed"),
            ("sum_right", "the sum over all GPUs is wrong"),
        )
        if facts.get(key) is False
    ]
    if wrong:
        return ended("failed", "; ".join(wrong))
    if outcome.code or not any("done" in line for line in lines):
        how = f"its process ended with {outcome.code}, in: {doing(lines)}"
        return ended("failed", f"{how}: {last_words(outcome)}" if last_words(outcome) else how)
    return ended("passed", "")


def _compare(trials: tuple[CudaTrial, ...]) -> tuple[CudaTrial, ...]:
    """Fail those whose product differs, to the bit, from that of most others."""
    sums = Counter(t.facts["checksum"] for t in trials if t.ending == "passed")
    if len(sums) < 2:
        return trials
    most = sums.most_common(1)[0][0]
    words = "its product differs from that of the other GPUs"
    return tuple(
        trial._replace(ending="failed", words=words)
        if trial.ending == "passed" and trial.facts["checksum"] != most
        else trial
        for trial in trials
    )
