"""What the kernel log of this boot says against the GPUs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from slm_core.health import xids
from slm_core.health.findings import finding
from slm_core.health.gpu_checks import ACTION_OF_REQUEST
from slm_core.health.kernel_lines import OFF_BUS, KernelEvent
from slm_core.health.kernel_log import KernelLog
from slm_core.health.spec import HealthSpec
from slm_core.records import Health, HealthCheck, NextAction, utc_now

_NEXT: dict[str, NextAction] = {
    "reset_gpu": NextAction.RESET_GPU,
    "reboot_node": NextAction.REBOOT,
    "check_power": NextAction.CHECK_POWER,
    "contact_vendor": NextAction.CONTACT_VENDOR,
}
_SHOWN_LINES = 5


def speaks_of_loss(log: KernelLog) -> bool:
    """Whether this boot saw a GPU leave the bus, or the fatal error that stops all of them."""
    return any(
        event.kind in ("off_bus", "uvm_fatal") or event.code == OFF_BUS for event in log.events
    )


def check_events(
    log: KernelLog, names: Mapping[str, str], asks_for_nothing: Iterable[str], spec: HealthSpec
) -> list[HealthCheck]:
    """Return a check per kind of trouble; a single PASS if a complete log holds none.

    Args:
        log: must have been readable.
        names: how checks call the GPU at an address.
        asks_for_nothing: GPUs of which the driver says, now, that they need nothing; older
            requests are then done with.
        spec: how far back a momentary event counts.
    """
    content = set(asks_for_nothing)
    found = [*_fatal(log.events), *_lost(log.events, names), *_requests(log.events, names, content)]
    found += _xids(log.events, names, content, spec)
    found += _others(log.events, spec)
    if found:
        return found
    if not log.complete:
        said = f"No fault of a GPU in what is left of the kernel log: {log.problem}."
        return [finding("kernel_log", Health.WARN, said, source=log.source)]
    said = "No fault of a GPU in the kernel log of this boot."
    return [finding("kernel_log", Health.PASS, said, source=log.source)]


def check_unreadable(log: KernelLog, *, vouched_by: str | None, spec: HealthSpec) -> HealthCheck:
    """Return the check in place of a log that cannot be read: never PASS."""
    said = f"The kernel log cannot be read ({log.problem}). "
    mount = "Mount the host's log and set SLM_KERNEL_LOG to see driver faults at once."
    if vouched_by and not spec.require_kernel_log:
        said += f"Judged by {vouched_by} instead. {mount}"
        return finding("kernel_log", Health.WARN, said, problem=log.problem, by=vouched_by)
    said += f"Nothing else tells whether the driver reported a fault. {mount}"
    return finding("kernel_log", Health.UNKNOWN, said, problem=log.problem)


def _fatal(events: tuple[KernelEvent, ...]) -> list[HealthCheck]:
    lines = [event.text for event in events if event.kind == "uvm_fatal"]
    if not lines:
        return []
    said = (
        "The driver's shared memory module (UVM) reported a fatal error in this boot: CUDA fails "
        "on every GPU until the machine is rebooted, though nvidia-smi looks well."
    )
    action = NextAction.REBOOT
    return [finding("kernel_log", Health.FAIL, said, action=action, lines=lines[:_SHOWN_LINES])]


def _lost(events: tuple[KernelEvent, ...], names: Mapping[str, str]) -> list[HealthCheck]:
    lost: dict[str | None, list[str]] = {}
    for event in events:
        if event.kind == "off_bus" or (event.kind == "xid" and event.code == OFF_BUS):
            lost.setdefault(event.pci, []).append(event.text)
    if set(lost) - {None}:
        lost.pop(None, None)  # the line without an address belongs to one that has it
    return [
        finding(
            "kernel_log",
            Health.FAIL,
            f"The GPU at {pci or 'an unknown address'} fell off the bus in this boot. Go on "
            "without it if CUDA works on the others, else reboot.",
            gpu=names.get(pci, pci) if pci else None,
            action=NextAction.REBOOT,
            lines=lines[:_SHOWN_LINES],
        )
        for pci, lines in lost.items()
    ]


def _requests(
    events: tuple[KernelEvent, ...], names: Mapping[str, str], content: set[str]
) -> list[HealthCheck]:
    newest = {event.pci: event for event in events if event.kind == "recovery"}
    found: list[HealthCheck] = []
    for pci, event in newest.items():
        request, name = event.action or "unknown", names.get(pci or "", pci)
        if request == "none" or name in content:
            continue
        found.append(
            finding(
                "kernel_log",
                Health.FAIL,
                f"The driver asked for {request.replace('_', ' ')} (Xid 154).",
                gpu=name,
                action=ACTION_OF_REQUEST[request],
                lines=[event.text],
            )
        )
    return found


def _xids(
    events: tuple[KernelEvent, ...],
    names: Mapping[str, str],
    content: set[str],
    spec: HealthSpec,
) -> list[HealthCheck]:
    recent: dict[tuple[str | None, int], list[str]] = {}
    for event in events:
        if event.kind != "xid" or event.code in (None, OFF_BUS) or not _is_recent(event.at, spec):
            continue
        recent.setdefault((event.pci, event.code), []).append(event.text)
    found: list[HealthCheck] = []
    for (pci, code), lines in recent.items():
        row, name = xids.get(code), names.get(pci or "", pci)
        if row.action == "follow_other_xid":  # a consequence, and what ending a process prints
            continue
        # What asked for a reset may have had it since; the driver knows.
        health = Health.WARN if row.health is not Health.FAIL or name in content else Health.FAIL
        said = (
            f"Xid {code}, {len(lines)} times: {row.meaning}. To do: {xids.WHAT_TO_DO[row.action]}."
        )
        action = _NEXT.get(row.action)
        shown = lines[-_SHOWN_LINES:]
        found.append(
            finding("kernel_log", health, said, gpu=name, action=action, xid=code, lines=shown)
        )
    return found


def _others(events: tuple[KernelEvent, ...], spec: HealthSpec) -> list[HealthCheck]:
    found: list[HealthCheck] = []
    for kind, said in (
        ("reset_required", "The driver says of a GPU, without naming it, that it needs a reset."),
        ("sxid", "The NVLink switch reported errors; look at the fabric manager."),
    ):
        lines = [e.text for e in events if e.kind == kind and _is_recent(e.at, spec)]
        if lines:
            shown = lines[-_SHOWN_LINES:]
            found.append(finding("kernel_log", Health.WARN, said, lines=shown))
    return found


def _is_recent(at: datetime | None, spec: HealthSpec) -> bool:
    return at is None or at >= utc_now() - timedelta(seconds=spec.recent_seconds)
