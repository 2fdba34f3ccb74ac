"""Looks at a machine after a fault, from all sides, and makes one ``Evidence`` of it.

Every question goes to a child process with a deadline. After a sign that calls into the driver
may hang (Xid 79, 119, 120, a card off the bus, a fatal UVM error, a hang already seen) NVML is
asked nothing more. CUDA is tried only on GPUs that nothing accuses, and only if it can still
change the verdict.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, NamedTuple

from slm_core.health import active, bounded, host_files, kernel_log, nvml
from slm_core.health.child_output import STARTING
from slm_core.health.cuda_text import CudaText, CudaTrouble, classify
from slm_core.health.evidence import (
    CudaProbe,
    Evidence,
    LostSeen,
    NvmlAnswer,
    NvmlSeen,
    ProbeSeen,
    RecoverySeen,
    XidSeen,
)
from slm_core.health.host import HostPaths
from slm_core.health.host_files import HostFiles
from slm_core.health.identity import Devices
from slm_core.health.kernel_lines import OFF_BUS, KernelEvent, recovery_action
from slm_core.health.kernel_log import KernelLog
from slm_core.health.ledger import Ledger
from slm_core.health.nvml import NvmlAnswers
from slm_core.health.nvml_codes import SMI_STATUSES
from slm_core.health.sightings import Sighting, stops_nvml
from slm_core.health.spec import HealthSpec
from slm_core.health.watch_spec import WatchSpec
from slm_core.health.xid_rules import APP_CODES
from slm_core.records import EvidenceTier, Fault

_NO_GPU_FAULT = frozenset(
    {
        "disk_full",
        "checkpoint_corrupt",
        "interrupted",
        "refused",
        "out_of_host_memory",
        "worker_killed",
    }
)


class Case(NamedTuple):
    """What is to be examined: one fault of one run on one machine."""

    host: HostPaths
    spec: HealthSpec
    watch: WatchSpec
    fault: Fault
    words: str
    gpus: tuple[str, ...]
    began_at: datetime
    """When the watch of the attempt that failed began."""
    job: str
    devices: Devices
    sightings: tuple[Sighting, ...]
    ledger: Ledger


class Examined(NamedTuple):
    """The evidence, and the raw answers that a bundle keeps."""

    evidence: Evidence
    kernel: KernelLog
    files: HostFiles
    nvml: NvmlAnswers | None
    smi: bounded.Outcome | None
    quiet: str
    """Why the driver was asked nothing; empty if it was."""
    devices: Devices


def examine(case: Case) -> Examined:
    """Return all that can be found out within the deadlines."""
    with ThreadPoolExecutor(3) as pool:
        looking = pool.submit(host_files.look, case.host, deadline_seconds=case.spec.files_seconds)
        kernel = kernel_log.read(case.host, since=None)
        quiet = _why_quiet(case, kernel.events)
        answers = smi = None
        if not quiet and case.gpus:
            asking = pool.submit(
                nvml.ask, case.host, deadline_seconds=case.watch.nvml_deadline_seconds
            )
            argv = (case.host.nvidia_smi, "-q")
            smi = bounded.run(argv, deadline_seconds=case.watch.smi_seconds)
            answers = asking.result()
        files = looking.result()
    devices = _name_cards(case.devices, files, answers)
    evidence = _evidence(case, kernel, files, answers, smi, devices)
    probes = _probe(case, evidence)
    if probes:
        # The driver may have reported more by now, and CUDA's own attempt is a common reason.
        kernel = kernel_log.read(case.host, since=None)
        evidence = _evidence(case, kernel, files, answers, smi, devices)
    evidence = evidence.model_copy(update={"probes": probes})
    return Examined(evidence, kernel, files, answers, smi, quiet, devices)


def _why_quiet(case: Case, events: tuple[KernelEvent, ...]) -> str:
    """Return why no call may go into the driver; empty if one may."""
    for sighting in case.sightings:
        if sighting.kind in ("hung", "unkillable", "lost") or sighting.code in (79, 119, 120):
            return sighting.text
    for event in events:
        new = _is_new(case, event)
        # A card that was lost before this run is known to whoever chose the others.
        ours = event.pci is None or case.devices.of_run(event.pci, case.gpus)
        if stops_nvml(event) and (new or ours or event.kind == "uvm_fatal"):
            return event.text
    return ""


def _is_new(case: Case, event: KernelEvent) -> bool:
    """Whether a line belongs to this run.

    What the watchdog saw does. The line's own time is only second best: the kernel's clock is
    not disciplined, and drifts by minutes over the months.
    """
    if any(one.source == "kernel_log" and one.text == event.text for one in case.sightings):
        return True
    return event.at is None or event.at >= case.began_at


def _name_cards(known: Devices, files: HostFiles, answers: NvmlAnswers | None) -> Devices:
    uuids = dict(files.uuids)
    slices: dict[str, tuple[str, ...]] = {}
    for gpu in answers.gpus if answers else ():
        uuid = str(gpu.get("uuid") or "")
        pieces = tuple(str(piece["uuid"]) for piece in gpu.get("slices") or ())
        if uuid and pieces:
            slices[uuid] = pieces
    return Devices(uuids=uuids, slices=slices).joined(known)


def _evidence(
    case: Case,
    kernel: KernelLog,
    files: HostFiles,
    answers: NvmlAnswers | None,
    smi: bounded.Outcome | None,
    devices: Devices,
) -> Evidence:
    seen_nvml = _nvml_seen(case, answers, smi, devices)
    tier = EvidenceTier.SYMPTOMS
    if kernel.tier_available:
        tier = EvidenceTier.KERNEL_LOG
    elif any(s.kind == "events" for s in case.sightings) or (answers and answers.usable):
        tier = EvidenceTier.NVML_EVENTS
    elif smi is not None and smi.code == 0:
        tier = EvidenceTier.NVIDIA_SMI
    xids = _xids(case, kernel.events, devices)
    return Evidence(
        fault_kind=case.fault.kind,
        gpus=case.gpus,
        words=classify(f"{case.words}\n{case.fault.message}"),
        xids=xids,
        uvm=_texts(case, kernel, "uvm_fatal"),
        lost=_lost(case, kernel.events, files, devices),
        recovery=_recovery(case, kernel.events, answers, devices),
        reset_required=_texts(case, kernel, "reset_required"),
        switch_faults=tuple(line for line in _texts(case, kernel, "sxid") if ", Fatal" in line),
        nvml=seen_nvml,
        in_container=files.in_container,
        devices_denied=None if files.nvidiactl_errno is None else files.devices_denied,
        host_lists_gpus=len(files.proc_gpus) >= len(case.gpus) if files.finished else None,
        before=_before(case),
        reboots={gpu: case.ledger.reboots(gpu) for gpu in case.gpus},
        tier=tier,
    )


def _texts(case: Case, kernel: KernelLog, kind: str) -> tuple[str, ...]:
    """Lines of one kind: of the whole boot where they describe a state, else of this run."""
    lines = (
        event.text
        for event in kernel.events
        if event.kind == kind and (event.is_state or _is_new(case, event))
    )
    return tuple(dict.fromkeys(lines))


def _xids(case: Case, events: tuple[KernelEvent, ...], devices: Devices) -> tuple[XidSeen, ...]:
    found: list[XidSeen] = []
    for number, event in enumerate(events):
        if event.kind != "xid" or event.code is None or event.pci is None:
            continue
        if not _is_new(case, event):
            continue
        at = event.at.timestamp() if event.at else float(number)
        for gpu in devices.of_run(event.pci, case.gpus):
            found.append(XidSeen(code=event.code, gpu=gpu, seconds=at, line=event.text))
    if found:
        return tuple(found)
    return tuple(
        XidSeen(code=one.code, gpu=gpu, seconds=one.wall_time, line=one.text)
        for one in case.sightings
        if one.source == "nvml" and one.kind == "xid" and one.code is not None
        for gpu in devices.of_run(one.gpu or "unknown GPU", case.gpus)
    )


def _lost(
    case: Case, events: tuple[KernelEvent, ...], files: HostFiles, devices: Devices
) -> tuple[LostSeen, ...]:
    found: list[LostSeen] = []
    for event in events:
        if event.kind != "off_bus" and not (event.kind == "xid" and event.code == OFF_BUS):
            continue
        if event.pci is None:
            found.append(LostSeen(gpu=None, line=event.text))
        for gpu in devices.of_run(event.pci, case.gpus) if event.pci else ():
            found.append(LostSeen(gpu=gpu, line=event.text))
    for pci in files.off_the_bus:
        for gpu in devices.of_run(pci, case.gpus):
            found.append(LostSeen(gpu=gpu, line=f"PCI {pci}: its configuration reads as all ones"))
    for one in case.sightings:
        if one.kind == "lost" and one.code != nvml.RESET_REQUIRED and one.gpu:
            for gpu in devices.of_run(one.gpu, case.gpus):
                found.append(LostSeen(gpu=gpu, line=f"NVML {one.code}: {one.text}"))
    return tuple(found)


def _recovery(
    case: Case, events: tuple[KernelEvent, ...], answers: NvmlAnswers | None, devices: Devices
) -> tuple[RecoverySeen, ...]:
    """Newest line of each card; what NVML says now is newer still."""
    newest: dict[str, RecoverySeen] = {}
    for event in events:
        if event.kind == "recovery" and event.pci and event.action:
            whole = event.action in ("node_reboot", "system_reboot")
            names = devices.of_run(event.pci, case.gpus)
            for gpu in names or ((devices.name(event.pci),) if whole else ()):
                newest[gpu] = RecoverySeen(gpu=gpu, action=event.action, line=event.text)
    for one in answers.gpus if answers else ():
        number = one.get("recovery_action")
        if number is None:
            continue
        action = recovery_action(int(number))
        for gpu in devices.of_run(str(one.get("uuid")), case.gpus):
            newest[gpu] = RecoverySeen(gpu=gpu, action=action, line=f"NVML field 230: {action}")
    return tuple(newest.values())


def _nvml_seen(
    case: Case, answers: NvmlAnswers | None, smi: bounded.Outcome | None, devices: Devices
) -> NvmlSeen:
    for one in case.sightings:
        if one.kind in ("hung", "unkillable"):
            stuck = one.kind == "unkillable"
            return NvmlSeen(answer=NvmlAnswer.HUNG, words=one.text, unkillable=stuck)
    if smi is not None and smi.hung and smi.unkillable:
        words = f"nvidia-smi is in state {smi.state} and cannot be killed"
        return NvmlSeen(answer=NvmlAnswer.HUNG, words=words, unkillable=True)
    if answers is None:
        reset = [s.gpu for s in case.sightings if s.kind == "lost" and s.code == 16 and s.gpu]
        names = [gpu for one in reset for gpu in devices.of_run(one, case.gpus)]
        return NvmlSeen(need_reset=tuple(dict.fromkeys(names)))
    if answers.outcome.hung and answers.doing == STARTING:  # Python itself did not start in time
        return _smi_seen(smi)
    if answers.outcome.hung:
        return NvmlSeen(
            answer=NvmlAnswer.HUNG,
            words=f"no answer in {answers.outcome.seconds:.1f} s from {answers.doing}",
            unkillable=answers.outcome.unkillable,
        )
    if answers.init in (None, nvml.NO_PACKAGE):
        return _smi_seen(smi)
    if answers.init:
        return NvmlSeen(answer=NvmlAnswer.ERROR, code=answers.init, words=answers.words)
    return _cards_seen(case, answers, devices)


def _cards_seen(case: Case, answers: NvmlAnswers, devices: Devices) -> NvmlSeen:
    """NVML answers; it may still miss a card of ours, or say that one is lost."""
    there: set[str] = set()
    lost: list[str] = []
    reset: list[str] = []
    bad: list[dict[str, Any]] = []
    for one in answers.gpus:
        codes = {int(one.get("handle") or 0), *map(int, (one.get("codes") or {}).values())}
        names = devices.of_run(str(one["uuid"]), case.gpus) if one.get("uuid") else ()
        there |= set(names)
        if codes & {*nvml.LOST, nvml.RESET_REQUIRED}:
            (reset if nvml.RESET_REQUIRED in codes else lost).extend(names)
            bad.append(one)
    named = all(gpu.startswith(("GPU-", "MIG-")) for gpu in case.gpus)
    missing = [gpu for gpu in case.gpus if gpu not in there] if answers.usable and named else []
    only_reset = bool(bad) and all(one.get("handle") == nvml.RESET_REQUIRED for one in bad)
    (reset if only_reset else lost).extend(missing)
    words = str(bad[0].get("words") or "a GPU is lost") if bad else ""
    return NvmlSeen(
        answer=NvmlAnswer.ANSWERED,
        code=0,
        words=words or (f"does not list {', '.join(missing)}" if missing else ""),
        lost=tuple(dict.fromkeys(lost)),
        need_reset=tuple(dict.fromkeys(reset)),
    )


def _smi_seen(smi: bounded.Outcome | None) -> NvmlSeen:
    """What nvidia-smi's status says, where NVML itself cannot be asked."""
    if smi is None or smi.code == bounded.NOT_STARTED:
        return NvmlSeen()
    text = (smi.stdout + smi.stderr).strip()
    words = (text.splitlines() or [""])[-1][:200]
    if smi.hung:
        return NvmlSeen(answer=NvmlAnswer.HUNG, words=f"nvidia-smi in state {smi.state}")
    if smi.code == 0:
        return NvmlSeen(answer=NvmlAnswer.ANSWERED, code=0)
    code = smi.code if smi.code in SMI_STATUSES else 18 if "version mismatch" in text else 999
    return NvmlSeen(answer=NvmlAnswer.ERROR, code=code, words=words)


def _before(case: Case) -> tuple[tuple[str, int], ...]:
    """Earlier Xids that change a verdict: of the program's kind only from other jobs."""
    other_jobs = case.ledger.repeats(case.job, APP_CODES)
    same_job = [one for one in case.ledger.seen_in_job(case.job) if one.xid not in APP_CODES]
    return tuple(dict.fromkeys((one.gpu, one.xid) for one in (*other_jobs, *same_job)))


def _probe(case: Case, evidence: Evidence) -> tuple[ProbeSeen, ...]:
    """Try CUDA on the GPUs that nothing accuses, if that can still change the verdict."""
    rebooting = ("node_reboot", "system_reboot")
    decided = evidence.uvm or any(seen.action in rebooting for seen in evidence.recovery)
    if decided or not case.gpus or not _is_about_gpus(case, evidence):
        return ()
    accused = {seen.gpu for seen in evidence.lost} | {*evidence.nvml.lost}
    accused |= {xid.gpu for xid in evidence.xids if xid.code in (79, 119, 120)}
    survivors = [gpu for gpu in case.gpus if gpu not in accused]
    return tuple(
        ProbeSeen(gpu=trial.gpu, outcome=CudaProbe(trial.ending), words=trial.words)
        for trial in active.try_gpus(survivors, case.spec, case.host)
    )


def _is_about_gpus(case: Case, evidence: Evidence) -> bool:
    """Whether a GPU may have had a part in it; trying CUDA costs seconds."""
    signs = (
        evidence.xids or evidence.lost or evidence.recovery or evidence.reset_required,
        evidence.switch_faults or evidence.nvml.lost or evidence.nvml.need_reset,
        evidence.nvml.answer in (NvmlAnswer.ERROR, NvmlAnswer.HUNG),
    )
    if any(signs):
        return True
    return case.fault.kind not in _NO_GPU_FAULT and not _is_memory(evidence.words, case.fault)


def _is_memory(words: CudaText | None, fault: Fault) -> bool:
    return fault.kind == "out_of_gpu_memory" or (
        words is not None and words.trouble is CudaTrouble.OUT_OF_MEMORY
    )
