"""One fault, seen from all sides, to one verdict and one next action. Pure: no clock, no driver.

The rules are a table, read from the top; the first that matches decides. Whether one GPU is
dropped or the machine rebooted is decided by a fatal error of unified memory and by CUDA tried
on the survivors, never by the number of an Xid alone, and never by NVML, which answers well on
a machine where no card can run CUDA any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from slm_core.health.cuda_text import CudaTrouble
from slm_core.health.evidence import CudaProbe, Evidence, NvmlAnswer
from slm_core.health.nvml_codes import meaning_of
from slm_core.health.remedies import commands_for, reset_commands
from slm_core.health.xid_rules import Verdict, judge
from slm_core.records import NextAction, Triage

MOST_REBOOTS = 2
"""In seven days for one GPU; then a person inspects it instead."""
_GSP = frozenset({119, 120})
_LOST_XID = 79


class Rule(NamedTuple):
    """One row: a name for tests and bundles, and what finds it."""

    name: str
    find: Callable[[Evidence], Verdict | None]


def triage(evidence: Evidence) -> Triage:
    """Return the verdict of the first rule that matches."""
    _, verdict = decide(evidence)
    action, reason = verdict.action, verdict.reason
    commands = (*commands_for(action, verdict.sick), *verdict.commands)
    tired = [gpu for gpu in verdict.sick if evidence.reboots.get(gpu, 0) >= MOST_REBOOTS]
    if action is NextAction.REBOOT and tired:
        action = NextAction.CONTACT_VENDOR
        reason = (
            f"{reason} {', '.join(tired)}: {evidence.reboots[tired[0]]} reboots within seven days "
            "did not cure it; inspect the card before the next one."
        )
        commands = (*commands_for(action, verdict.sick), *commands)
    return Triage(
        action=action,
        reason=reason,
        facts=verdict.facts,
        sick=verdict.sick,
        survivors=tuple(gpu for gpu in evidence.passed if gpu not in verdict.sick),
        commands=tuple(dict.fromkeys(commands)),
        tier=evidence.tier,
    )


def decide(evidence: Evidence) -> tuple[str, Verdict]:
    """Return the name and the finding of the first rule that matches."""
    for rule in RULES:
        if verdict := rule.find(evidence):
            return rule.name, verdict
    return "nothing", Verdict(
        NextAction.RESUME, "No sign of a GPU fault was found; go on from the newest checkpoint."
    )


def _uvm_fatal(e: Evidence) -> Verdict | None:
    if not e.uvm:
        return None
    causes = [*(seen.line for seen in e.lost), *(xid.line for xid in e.xids if xid.code != 45)]
    asked = [seen.line for seen in e.recovery if seen.action in _REBOOTS]
    return Verdict(
        NextAction.REBOOT,
        "Unified memory met a fatal error: no GPU of this machine can run CUDA before a reboot, "
        "whatever the Xid says.",
        _unique([e.uvm[0], *causes[:2], *asked[:1]]),
        _suspects(e),
    )


def _node_reboot(e: Evidence) -> Verdict | None:
    asked = [seen for seen in e.recovery if seen.action in _REBOOTS]
    if not asked:
        return None
    return Verdict(
        NextAction.REBOOT,
        f"The driver asks for a reboot on {len(asked)} GPU(s).",
        _unique([*(seen.line for seen in asked[:2]), *(seen.line for seen in e.lost[:1])]),
        _suspects(e) or _unique(seen.gpu for seen in asked),
    )


def _lost_gpu(e: Evidence) -> Verdict | None:
    named = _unique(
        [*(seen.gpu for seen in e.lost if seen.gpu), *e.nvml.lost]
        + [xid.gpu for xid in e.xids if xid.code == _LOST_XID]
    )
    unnamed = any(seen.gpu is None for seen in e.lost) and not named
    if not named and not (unnamed and e.not_passed):
        return None
    facts = _unique(
        [seen.line for seen in e.lost]
        + [xid.line for xid in e.xids if xid.code == _LOST_XID]
        + ([f"NVML: {e.nvml.words}"] if e.nvml.lost else [])
    )
    works = [gpu for gpu in e.passed if gpu not in named]
    if works:
        sick = _unique([*named, *(gpu for gpu in e.not_passed if gpu not in named)])
        return Verdict(
            NextAction.DROP_GPU,
            f"{', '.join(sick)} left the bus; CUDA works on the other {len(works)}: go on there.",
            (*facts, *_probe_facts(e)),
            sick,
            ("# the lost card comes back only by a reboot, or by a cold start",),
        )
    others = [gpu for gpu in e.gpus if gpu not in named]
    why = "CUDA works on no other GPU" if others else "there is no other GPU"
    return Verdict(
        NextAction.REBOOT,
        f"{', '.join(named) or 'A GPU'} left the bus and {why}.",
        (*facts, *_probe_facts(e)),
        named,
        ("# lost again after the reboot: power off for a minute; check power, riser and heat",),
    )


def _gsp_timeout(e: Evidence) -> Verdict | None:
    seen = [xid for xid in e.xids if xid.code in _GSP]
    if not seen:
        return None
    facts = (*_unique(xid.line for xid in seen[:2]), *_probe_facts(e))
    sick = _unique(xid.gpu for xid in seen)
    returned = any(p.outcome in (CudaProbe.PASSED, CudaProbe.FAILED) for p in e.probes)
    if returned and not e.any_hung and e.nvml.answer is not NvmlAnswer.HUNG:
        reason = "The GPU's firmware stopped answering; the driver itself still returns: reset it."
        return Verdict(NextAction.RESET_GPU, reason, facts, sick)
    reason = "The GPU's firmware stopped answering and no call into the driver returns."
    return Verdict(NextAction.REBOOT, reason, facts, sick)


def _recovery_asked(e: Evidence) -> Verdict | None:
    for names, action, what in _RECOVERIES:
        asked = [seen for seen in e.recovery if seen.action in names]
        if asked:
            gpus = _unique(seen.gpu for seen in asked)
            lines = _unique(seen.line for seen in asked)
            if action is NextAction.RESUME and _sick_by_cuda(e):
                action, what = NextAction.RESET_GPU, "reset the GPU: CUDA does not work on it"
            sick = () if action is NextAction.RESUME else gpus
            return Verdict(action, f"The driver asks to {what}.", lines, sick, _IMEX.get(what, ()))
    return None


def _driver_hung(e: Evidence) -> Verdict | None:
    # Where CUDA hangs on some cards only, the rule on CUDA leaves these out.
    if e.nvml.answer is not NvmlAnswer.HUNG and not (e.any_hung and not e.passed):
        return None
    facts = (f"NVML: {e.nvml.words or 'did not come back'}", *_probe_facts(e))
    if e.passed and not e.nvml.unkillable and not e.any_hung:
        reason = "The driver library hangs while CUDA still works: reset the GPUs."
        return Verdict(NextAction.RESET_GPU, reason, facts, e.not_passed)
    held = " and cannot be killed" if e.nvml.unkillable else ""
    return Verdict(
        NextAction.REBOOT, f"A call into the driver does not come back{held}.", facts, e.not_passed
    )


def _nvml_code(e: Evidence) -> Verdict | None:
    if e.nvml.need_reset:
        lines = (f"NVML: {e.nvml.words or 'reset required'}",)
        return Verdict(NextAction.RESET_GPU, "NVML: a GPU needs a reset.", lines, e.nvml.need_reset)
    if e.nvml.answer is not NvmlAnswer.ERROR or e.nvml.code is None:
        return None
    fact = f"NVML {e.nvml.code}: {e.nvml.words}"
    if e.nvml.code == 999:
        return _nvml_unknown(e, fact)
    known = meaning_of(e.nvml.code, in_container=e.in_container)
    if known is None or e.nvml.code not in _NVML_DECIDES:
        return None
    return Verdict(known.action, f"NVML: {known.text}.", (fact,))


def _nvml_unknown(e: Evidence, fact: str) -> Verdict | None:
    """Tell a dead driver from a container that lost access to its devices; both say 999."""
    clean_log = e.tier == 1 and not e.xids
    if not e.xids and e.host_lists_gpus is not False:
        denied = "opening /dev/nvidiactl is refused"
        unopened = e.devices_denied is None and e.in_container and e.host_lists_gpus
        if e.devices_denied or (unopened and clean_log):
            return Verdict(
                NextAction.RECREATE_CONTAINER,
                "The container lost access to its GPUs (a daemon-reload does that); the host's "
                "driver is well. A reboot would be wrong.",
                (
                    fact,
                    denied if e.devices_denied else "there is no /dev/nvidiactl; the log is clean",
                ),
            )
    if e.passed and not e.not_passed:
        return None
    return Verdict(
        NextAction.REBOOT,
        "NVML says only 'unknown error', and nothing shows that the devices were taken away: "
        "the driver is dead.",
        (fact, *_probe_facts(e)),
        _sick_by_cuda(e),
    )


def _reset_required(e: Evidence) -> Verdict | None:
    if not e.reset_required or not e.not_passed:
        return None
    facts = (e.reset_required[0], *_probe_facts(e))
    if e.passed:
        reason = "A GPU waits for a reset; without it the others work: go on there."
        later = reset_commands(e.not_passed)
        return Verdict(NextAction.DROP_GPU, reason, facts, e.not_passed, later)
    return Verdict(NextAction.RESET_GPU, "A GPU waits for a reset.", facts, e.not_passed)


def _switch(e: Evidence) -> Verdict | None:
    if not e.switch_faults:
        return None
    reason = "An NVSwitch reports a fatal error: every GPU behind it needs a reset."
    return Verdict(NextAction.RESET_GPU, reason, e.switch_faults[:2], e.gpus)


def _xid(e: Evidence) -> Verdict | None:
    verdict = judge(e)
    if verdict and verdict.action is NextAction.RESUME and _sick_by_cuda(e):
        return None  # CUDA is the better witness
    return verdict


def _out_of_memory(e: Evidence) -> Verdict | None:
    if e.words is None or e.words.trouble is not CudaTrouble.OUT_OF_MEMORY or _sick_by_cuda(e):
        return None
    reason = "Out of GPU memory, with no sign of a fault: use less memory, on the same GPUs."
    return Verdict(NextAction.RESUME, reason, (e.words.line,))


def _cuda_decides(e: Evidence) -> Verdict | None:
    """What the words cannot tell: CUDA tried on each GPU."""
    tried = [p for p in e.probes if p.outcome is not CudaProbe.UNTRIED]
    facts = _unique(
        [*([e.words.line] if e.words else []), *(x.line for x in e.xids[:1]), *_probe_facts(e)]
    )
    blind = "" if e.tier == 1 else f" The kernel log could not be read (evidence tier {e.tier})."
    if tried and not e.not_passed:
        reason = f"CUDA works on all {len(e.passed)} GPU(s): go on with the same.{blind}"
        return Verdict(NextAction.RESUME, reason, facts)
    if tried and e.passed:
        reason = f"CUDA works on {len(e.passed)} of {len(e.gpus)} GPUs: go on with these.{blind}"
        return Verdict(NextAction.DROP_GPU, reason, facts, e.not_passed)
    if tried:
        reason = f"CUDA works on none of {len(e.gpus)} GPU(s).{blind}"
        return Verdict(NextAction.REBOOT, reason, facts, e.not_passed if len(e.gpus) == 1 else ())
    if e.words is not None and e.words.trouble in _GRAVE and e.gpus:
        reason = f"The words are those of a dead driver, and CUDA could not be tried.{blind}"
        return Verdict(NextAction.REBOOT, reason, facts)
    if e.words is not None:
        reason = f"The program failed in CUDA; nothing shows a sick GPU, none was tested.{blind}"
        return Verdict(NextAction.RESUME, reason, facts)
    return None


def _sick_by_cuda(e: Evidence) -> tuple[str, ...]:
    """GPUs on which CUDA was tried and did not work."""
    bad = (CudaProbe.FAILED, CudaProbe.HUNG)
    return tuple(p.gpu for p in e.probes if p.outcome in bad)


def _suspects(e: Evidence) -> tuple[str, ...]:
    lost = [seen.gpu for seen in e.lost if seen.gpu]
    return _unique(lost or [xid.gpu for xid in e.xids if xid.code != 45])


def _probe_facts(e: Evidence) -> tuple[str, ...]:
    return tuple(
        f"CUDA on {p.gpu}: {p.outcome}{f' ({p.words})' if p.words else ''}" for p in e.probes
    )


def _unique(items: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(items))


_REBOOTS = ("node_reboot", "system_reboot")
_GRAVE = (CudaTrouble.UNKNOWN_ERROR, CudaTrouble.LOST, CudaTrouble.INIT_FAILED, CudaTrouble.ECC)
_RESTART_IMEX = "start the IMEX service again"
_IMEX = {_RESTART_IMEX: ("sudo systemctl restart nvidia-imex",)}
_RECOVERIES: tuple[tuple[tuple[str, ...], NextAction, str], ...] = (
    (("drain_and_reset",), NextAction.RESET_GPU, "end all work on the GPU and reset it"),
    (("gpu_reset", "bus_reset"), NextAction.RESET_GPU, "reset the GPU"),
    (("recover_imex",), NextAction.RELOAD_DRIVER, _RESTART_IMEX),
    (("unknown",), NextAction.CONTACT_VENDOR, "do something that is not in our table"),
    (("drain_p2p",), NextAction.RESUME, "end peer-to-peer work, which the run's end has done"),
)
_NVML_DECIDES = frozenset({8, 9, 12, 14, 16, 17, 18})
"""Numbers that say what is wrong; of a timeout or a lost GPU other rules know more."""
RULES: tuple[Rule, ...] = (
    Rule("uvm_fatal", _uvm_fatal),
    Rule("node_reboot_asked", _node_reboot),
    Rule("lost_gpu", _lost_gpu),
    Rule("gsp_timeout", _gsp_timeout),
    Rule("recovery_asked", _recovery_asked),
    Rule("driver_hung", _driver_hung),
    Rule("nvml_code", _nvml_code),
    Rule("reset_required", _reset_required),
    Rule("switch_fault", _switch),
    Rule("xid", _xid),
    Rule("out_of_memory", _out_of_memory),
    Rule("cuda_decides", _cuda_decides),
)
