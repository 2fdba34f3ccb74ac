"""Whether the GPUs of this machine may be trained on: every check, before any work.

The cheap part asks kernel, driver library and kernel log, at the same time; the active part
makes every GPU work. Each question runs in a process that can be left behind, and what could
not be asked is UNKNOWN. Nothing is ever reset or reloaded here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from slm_core.health import active as cuda
from slm_core.health import devices, host_files, kernel_checks, kernel_log, nvidia_smi, nvml
from slm_core.health.findings import finding
from slm_core.health.gpu_checks import check_gpu
from slm_core.health.host import HostPaths
from slm_core.health.host_files import HostFiles
from slm_core.health.kernel_log import KernelLog
from slm_core.health.nvml import NvmlAnswers
from slm_core.health.nvml_codes import LIBRARY_NOT_FOUND
from slm_core.health.spec import HealthSpec
from slm_core.records import (
    EvidenceTier,
    Gpu,
    Health,
    HealthCheck,
    HealthReport,
    NextAction,
    utc_now,
)

OnProgress = Callable[[int, int, str], None]

_TRIES, _BETWEEN_TRIES_SECONDS = 3, 1.0


def check_gpus(
    spec: HealthSpec,
    *,
    kernel_log: Path | None = None,
    active: bool = True,
    gpus: tuple[str, ...] = (),
    host: HostPaths | None = None,
    on_progress: OnProgress | None = None,
) -> HealthReport:
    """Examine the GPUs; never raises for what is wrong with them.

    Args:
        spec: thresholds and time limits.
        kernel_log: file with the kernel log; None looks for one.
        active: whether to make each GPU work, which takes about half a minute.
        gpus: those to look at, by UUID, address or index; empty takes all.
        host: another machine's folders; for tests.
        on_progress: called with (steps done, steps in all, what).
    """
    began = time.monotonic()
    host = host or HostPaths()
    if kernel_log is not None:
        host = replace(host, kernel_log=kernel_log)
    tell = on_progress or (lambda done, total, what: None)
    total = 4 if active else 2
    tell(0, total, "kernel log, driver files and NVML")
    seen = _look(host, spec)
    tell(1, total, "judge")
    found = _judge(seen, spec, gpus)
    checks = list(found.checks)
    report = HealthReport(
        boot_id=host.boot_id(), tier=found.tier, gpus=found.gpus, checks=tuple(checks)
    )
    # A GPU is not tried while something says FAIL of it, or of the whole machine.
    worth_trying = [gpu for gpu in report.usable if active]
    trials: tuple[cuda.CudaTrial, ...] = ()
    if active and worth_trying:
        tell(2, total, f"CUDA on {len(worth_trying)} GPUs")
        trials = cuda.try_gpus([gpu.uuid for gpu in worth_trying], spec, host)
        checks += cuda.check_trials(trials, spec)
        passed = [trial.gpu for trial in trials if trial.ending == "passed"]
        # NCCL does not join slices of one card.
        if len(passed) > 1 and not any(gpu.is_mig for gpu in worth_trying):
            tell(3, total, "all-reduce")
            checks.append(cuda.check_collective(passed, spec, host))
    if not seen.log.tier_available:
        checks.append(_without_log(seen, found, trials, spec))
    tell(total, total, "done")
    seconds = round(time.monotonic() - began, 3)
    return report.model_copy(update={"checks": tuple(checks), "seconds": seconds})


class _Seen(NamedTuple):
    log: KernelLog
    files: HostFiles
    nvml: NvmlAnswers
    smi: nvidia_smi.SmiAnswer | None


class _Found(NamedTuple):
    gpus: tuple[Gpu, ...]
    checks: list[HealthCheck]
    tier: EvidenceTier
    content: set[str]
    """Names of GPUs of which the driver says that they need nothing."""
    names: set[str]
    """Of all GPUs that were looked at."""


def _look(host: HostPaths, spec: HealthSpec) -> _Seen:
    """Ask everything that can be asked without touching a GPU."""
    since = utc_now() - timedelta(seconds=spec.recent_seconds)
    with ThreadPoolExecutor(3) as pool:
        log = pool.submit(kernel_log.read, host, since=since)
        files = pool.submit(host_files.look, host, deadline_seconds=spec.files_seconds)
        answers = _ask_nvml(host, spec)
        smi = None
        if not answers.outcome.hung and answers.init in (None, nvml.NO_PACKAGE):
            smi = nvidia_smi.ask(
                host,
                in_container=files.result().in_container,
                deadline_seconds=spec.nvidia_smi_seconds,
            )
        return _Seen(log.result(), files.result(), answers, smi)


def _ask_nvml(host: HostPaths, spec: HealthSpec) -> NvmlAnswers:
    deadline = time.monotonic() + spec.nvml_seconds
    for last in [False] * (_TRIES - 1) + [True]:
        left = deadline - time.monotonic()
        answers = nvml.ask(host, deadline_seconds=max(left, 0.1))
        pause = time.monotonic() + _BETWEEN_TRIES_SECONDS < deadline
        if last or answers.init not in nvml.BUSY or not pause:
            return answers
        time.sleep(_BETWEEN_TRIES_SECONDS)
    raise AssertionError("the last try returns")


def _judge(seen: _Seen, spec: HealthSpec, wanted: tuple[str, ...]) -> _Found:
    files, answers, log = seen.files, seen.nvml, seen.log
    tier = _tier(seen)
    if not files.any_gpu and answers.init in (LIBRARY_NOT_FOUND, nvml.NO_PACKAGE, 9):
        listed = seen.smi.gpus if seen.smi else ()
        if files.finished and not listed:
            return _Found((), [_no_gpu(spec)], tier, set(), set())
    lost = kernel_checks.speaks_of_loss(log)
    checks = devices.check_files(files)
    driver = nvml.check_driver(answers, files, lost=lost)
    if seen.smi is None:
        checks.append(driver)
    else:  # nvidia-smi stands in; that NVML could not be asked is part of its answer
        checks.append(
            seen.smi.check.model_copy(update={"facts": driver.facts | seen.smi.check.facts})
        )
    raw = answers.gpus
    names = {one["index"]: devices.name_of(one, raw, files) for one in raw}
    cards = {names[one["index"]]: (one, devices.gpus_of(one) or (None,)) for one in raw}
    gpus = tuple(g for _, pieces in cards.values() for g in pieces if g) or (
        seen.smi.gpus if seen.smi else ()
    )
    if answers.usable or (seen.smi and seen.smi.gpus):
        listed_cards = answers.cards if answers.usable else len(gpus)
        count = devices.check_count(listed_cards or 0, files, spec.expected_gpus)
        if wanted and count.health is Health.FAIL:  # the caller knows which ones it wants
            count = count.model_copy(update={"health": Health.WARN})
        checks.append(count)
    if wanted:
        missing, gpus = _select(gpus, wanted)
        checks += missing
        chosen = {g.uuid for g in gpus} | {g.pci_bus_id for g in gpus}
        cards = {name: card for name, card in cards.items() if name in chosen}
    for name, (one, pieces) in cards.items():
        checks += check_gpu(one, name, spec)
        if one.get("mig") and pieces == (None,):
            said = f"{name} is cut into MIG slices, but has none; create one, or turn MIG off."
            checks.append(finding("mig", Health.UNKNOWN, said, gpu=name))
    content = {name for name, (one, _) in cards.items() if one.get("recovery_action") == 0}
    if log.tier_available:
        by_address = {g.pci_bus_id: (g.pci_bus_id if g.is_mig else g.uuid) for g in gpus}
        by_address = files.uuids | by_address
        of_interest = log
        if wanted:
            keep = {g.pci_bus_id for g in gpus} | {None}
            of_interest = log._replace(events=tuple(e for e in log.events if e.pci in keep))
        checks += kernel_checks.check_events(of_interest, by_address, content, spec)
    return _Found(gpus, checks, tier, content, set(cards) or {g.uuid for g in gpus})


def _select(
    gpus: tuple[Gpu, ...], wanted: Sequence[str]
) -> tuple[list[HealthCheck], tuple[Gpu, ...]]:
    missing = [name for name in wanted if not any(devices.is_called(g, name) for g in gpus)]
    said = "No GPU of this name answers; `slm gpus check` lists those that do."
    checks = [
        finding("gpu", Health.FAIL, f"{name}: {said}", gpu=name, action=NextAction.REBOOT)
        for name in missing
    ]
    return checks, tuple(g for g in gpus if any(devices.is_called(g, n) for n in wanted))


def _tier(seen: _Seen) -> EvidenceTier:
    if seen.log.tier_available:
        return EvidenceTier.KERNEL_LOG
    if seen.nvml.usable:
        return EvidenceTier.NVML_EVENTS
    if seen.smi and seen.smi.gpus:
        return EvidenceTier.NVIDIA_SMI
    return EvidenceTier.SYMPTOMS


def _no_gpu(spec: HealthSpec) -> HealthCheck:
    if spec.expected_gpus:
        said = (
            f"{spec.expected_gpus} GPUs are expected, and nothing here speaks of any: no card on "
            "the bus, no device file, no driver."
        )
        action = NextAction.RECREATE_CONTAINER
        return finding("gpu_count", Health.FAIL, said, action=action, expected=spec.expected_gpus)
    said = "This machine has no NVIDIA GPU, and none is expected; there is nothing to check."
    return finding("gpu_count", Health.UNKNOWN, said, driver=0, expected=spec.expected_gpus)


def _without_log(
    seen: _Seen, found: _Found, trials: Sequence[cuda.CudaTrial], spec: HealthSpec
) -> HealthCheck:
    vouched_by = None
    passed = {trial.gpu for trial in trials if trial.ending == "passed"}
    if found.names and found.names <= found.content:
        vouched_by = "the driver's recovery state of every GPU"
    elif found.gpus and {gpu.uuid for gpu in found.gpus} <= passed:
        vouched_by = "CUDA, which works on every GPU"
    return kernel_checks.check_unreadable(seen.log, vouched_by=vouched_by, spec=spec)
