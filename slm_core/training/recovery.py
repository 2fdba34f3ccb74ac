"""What to do after a fault: the next plan, or a stop with a reason. Pure functions.

Running out of GPU memory is answered in order of harm. Splitting passes and recomputing
activations happen inside the worker and change nothing that is learned. When both are used
up, the rungs here follow: a defragmenting allocator in a fresh process, a base model in 4
bits, shorter prompts, fewer GPUs. Other faults resume the same plan, without the GPUs that
the triage found sick. Whatever the fault, three attempts without a new step are the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from slm_core.errors import ConfigError
from slm_core.records import Attempt, Fault, NextAction, Triage
from slm_core.training.plan import Plan, first_plan
from slm_core.training.spec import TrainingSpec

MAX_WITHOUT_PROGRESS = 3
_RECIPE_ROUNDS = 2
_RECIPE = "recipe"

NEVER_RETRIED = frozenset({"diverged", "refused", "disk_full", "checkpoint_corrupt", "interrupted"})
"""Faults that the same worker would meet again, or that somebody asked for."""
NEEDS_TRIAGE = frozenset({"gpu_lost", "driver_hung"})
"""Faults after which only an examination of the GPUs allows another attempt."""


class Retry(NamedTuple):
    """Go on, with this plan."""

    plan: Plan
    reason: str


class Stop(NamedTuple):
    """Do not go on."""

    reason: str
    """A sentence that says why, and what to do."""
    triage: Triage | None = None
    """Given when a GPU or its driver is what somebody must see to first."""


def next_plan(
    spec: TrainingSpec,
    plan: Plan,
    fault: Fault,
    history: Sequence[Attempt],
    triage: Triage | None = None,
    *,
    earlier: Sequence[Attempt] = (),
) -> Retry | Stop:
    """Return how to go on after ``fault`` ended the last attempt of ``history``.

    Args:
        spec: what the run learns.
        plan: the plan of the attempt that failed.
        fault: how it ended.
        history: the attempts since somebody last asked for the run, the failed one last.
        triage: what an examination of the GPUs found, if there was one.
        earlier: attempts before those; their steps are no progress when taken again.
    """
    if fault.kind in NEVER_RETRIED:
        return Stop(fault.message)
    if triage is not None and triage.action not in (NextAction.RESUME, NextAction.DROP_GPU):
        return Stop(f"{fault.message} {triage.reason}", triage)
    if triage is None and fault.kind in NEEDS_TRIAGE:
        return Stop(
            f"{fault.message} Nothing examined the GPUs; look at nvidia-smi and the kernel log, "
            "reset the GPU or reboot, then train again to resume."
        )
    vain = _attempts_without_progress(history, earlier)
    if fault.kind == "out_of_gpu_memory":
        # A rung that did not help is no vain attempt: the next one may, and they are few.
        return _smaller(spec, plan)
    if fault.kind == "out_of_host_memory" and vain >= 2:
        return Stop(
            "The host ran out of memory again before a new step was finished. Free host memory "
            "or raise the container's limit, then train again to resume."
        )
    if vain >= MAX_WITHOUT_PROGRESS:
        return Stop(
            f"{vain} attempts in a row ended without a new step, the last one so: {fault.message}"
        )
    if triage is not None and triage.action is NextAction.DROP_GPU:
        return _without_sick(spec, plan, triage)
    return Retry(plan, f"resumed after {fault.kind}: {fault.message}")


def resumed_plan(spec: TrainingSpec, last: Plan | None, gpus: tuple[str, ...]) -> Plan:
    """Return the plan for a run that is asked for (again), on ``gpus``.

    It goes on with the plan that the run had reached, not with the one it began with.

    Raises:
        ConfigError: the base model is to be spread over GPUs, and there is one at most.
    """
    plan = last.model_copy(update={"gpus": gpus}) if last else first_plan(spec, gpus)
    if not gpus or len(gpus) >= plan.world_size:
        return plan
    fitted = _on_gpus(spec, plan, gpus)
    if fitted is None:
        raise ConfigError(
            f"shard=True spreads the base model over at least 2 GPUs, and {len(gpus)} can be "
            "used. Free another, or train with shard=False.",
            gpus=gpus,
        )
    return fitted


def history_of(attempts: Sequence[Attempt]) -> list[dict[str, Any]]:
    """Return the attempts as an error's context tells them."""
    return [
        {
            "attempt": attempt.number,
            "steps": f"{attempt.first_step}-{attempt.last_step}",
            "reason": attempt.reason,
            "recoveries": list(attempt.recoveries),
            "fault": attempt.fault.kind if attempt.fault else None,
            "message": attempt.fault.message if attempt.fault else "",
        }
        for attempt in attempts
    ]


def _smaller(spec: TrainingSpec, plan: Plan) -> Retry | Stop:
    """Return a plan that needs less GPU memory."""
    if spec.on_oom == "stop":
        return Stop("The GPU's memory is too small, and on_oom='stop' allows no other plan.")
    if spec.on_oom == "recipe":
        return _recipe(spec, plan)
    if spec.gradient_checkpointing != "off":
        # The worker has come to this by itself; the next one need not find out again.
        plan = plan.model_copy(update={"gradient_checkpointing": True})
    if not plan.expandable_segments:
        return _changed(plan, "expandable_segments", expandable_segments=True)
    if plan.quantization != "nf4" and not spec.shard:
        return _changed(plan, "base model in nf4", quantization="nf4")
    shorter = _next_length(spec, plan)
    if shorter is not None:
        return _changed(plan, f"max_length {plan.max_length} -> {shorter}", **_cut(plan, shorter))
    fewer = _half_the_gpus(spec, plan)
    if fewer is not None:
        return _changed(plan, f"world_size {plan.world_size} -> {fewer['world_size']}", **fewer)
    return Stop(
        "The GPU's memory is too small, and every rung of the ladder was taken: "
        f"{', '.join(plan.changes)}. Take a smaller base model or a larger GPU."
    )


def _recipe(spec: TrainingSpec, plan: Plan) -> Retry | Stop:
    """Return half the step, a shorter length, half the GPUs and a defragmenting allocator."""
    taken = sum(change.startswith(_RECIPE) for change in plan.changes)
    if taken >= _RECIPE_ROUNDS:
        return Stop(
            f"The GPU's memory is too small, and the recipe was followed {taken} times: "
            f"{', '.join(plan.changes)}. Take a smaller base model or a larger GPU."
        )
    rows = max(1, plan.rows_per_step // 2)
    update: dict[str, Any] = {"rows_per_step": rows, "expandable_segments": True}
    said = [f"rows_per_step {plan.rows_per_step} -> {rows}"]
    shorter = _next_length(spec, plan)
    if shorter is not None:
        update |= _cut(plan, shorter)
        said.append(f"max_length {plan.max_length} -> {shorter}")
    fewer = _half_the_gpus(spec, plan)
    if fewer is not None:
        update |= fewer
        said.append(f"world_size {plan.world_size} -> {fewer['world_size']}")
    return _changed(plan, f"{_RECIPE}: {', '.join(said)}, expandable_segments", **update)


def _without_sick(spec: TrainingSpec, plan: Plan, triage: Triage) -> Retry | Stop:
    examined = {*triage.sick, *triage.survivors}
    # Indexes, or nothing, say little about UUIDs: then take what was found to work.
    named = plan.gpus if examined & {*plan.gpus} else triage.survivors
    left = tuple(gpu for gpu in named if gpu not in triage.sick)
    fitted = _on_gpus(spec, plan, left) if left else None
    if fitted is None:
        return Stop(f"{triage.reason} Too few GPUs are left without the sick ones.", triage)
    if left == plan.gpus:
        # Not another plan: attempts that end like this one are counted as in vain.
        return Retry(plan, f"resumed: {triage.reason}")
    change = f"without {', '.join(triage.sick) or 'the sick GPU'}"
    if fitted.world_size != plan.world_size:
        change += f", world_size {plan.world_size} -> {fitted.world_size}"
    retry = _changed(plan, change, gpus=left, world_size=fitted.world_size)
    return retry._replace(reason=f"{change}: {triage.reason}")


def _on_gpus(spec: TrainingSpec, plan: Plan, gpus: tuple[str, ...]) -> Plan | None:
    """Return ``plan`` on at most ``gpus``: the largest divisor of its workers that fits."""
    fits = (n for n in range(len(gpus), 0, -1) if plan.world_size % n == 0)
    world_size = next(fits, 1)
    if spec.shard and world_size < 2:
        return None
    return plan.model_copy(update={"gpus": gpus, "world_size": world_size})


def _half_the_gpus(spec: TrainingSpec, plan: Plan) -> dict[str, Any] | None:
    world_size = plan.world_size // 2
    if world_size < (2 if spec.shard else 1):
        return None
    return {"world_size": world_size, "gpus": plan.gpus[:world_size]}


def _next_length(spec: TrainingSpec, plan: Plan) -> int | None:
    return max((n for n in spec.shorter_lengths if n < plan.max_length), default=None)


def _cut(plan: Plan, length: int) -> dict[str, Any]:
    """Shrink the packed pass along with its rows."""
    return {
        "max_length": length,
        "pass_tokens": max(length, plan.pass_tokens * length // plan.max_length),
    }


def _changed(plan: Plan, change: str, **update: Any) -> Retry:
    changed = plan.model_copy(update={**update, "changes": (*plan.changes, change)})
    return Retry(changed, f"out of GPU memory: {change}")


def _attempts_without_progress(history: Sequence[Attempt], earlier: Sequence[Attempt]) -> int:
    """Return how many attempts at the end of ``history`` finished no new step.

    Another plan is another try, and there are few of them; so each is counted by itself.
    """
    best = max((_rows_read(attempt) for attempt in earlier), default=0)
    vain, changes = 0, None
    for attempt in history:
        reached = _rows_read(attempt)
        same = attempt.plan.get("changes") == changes
        vain = 0 if reached > best else vain + 1 if same else 1
        best, changes = max(best, reached), attempt.plan.get("changes")
    return vain


def _rows_read(attempt: Attempt) -> int:
    """Return how far an attempt came, comparable between plans with other steps."""
    return attempt.last_step * int(attempt.plan.get("rows_per_step", 1))
