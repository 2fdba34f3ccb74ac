"""What a person may type for each next action. Nothing here, or anywhere, runs these.

A reset or a module reload can turn one sick GPU into a dead machine, so each line says what
must hold before it is typed.
"""

from __future__ import annotations

from slm_core.records import NextAction

_FIXED: dict[NextAction, tuple[str, ...]] = {
    NextAction.RESUME: (),
    NextAction.DROP_GPU: (),
    NextAction.RECREATE_CONTAINER: (
        "# on the host: nvidia-smi    (it must work there; then only this container is cut off)",
        "docker restart CONTAINER    # or create it again, with --device=/dev/nvidiactl",
    ),
    NextAction.RELOAD_DRIVER: (
        "# only with no process on any GPU: sudo fuser -v /dev/nvidia*",
        "sudo rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia",
        "sudo modprobe nvidia && sudo modprobe nvidia_uvm    # if either fails: sudo reboot",
    ),
    NextAction.REBOOT: ("sudo reboot",),
    NextAction.CHECK_POWER: (
        "# power off; check the auxiliary power cables and the supply's rating, then start again",
    ),
    NextAction.CONTACT_VENDOR: ("sudo nvidia-bug-report.sh    # attach it and the bundle",),
}


def commands_for(action: NextAction, sick: tuple[str, ...]) -> tuple[str, ...]:
    """Return the lines to show for ``action`` on the GPUs ``sick``."""
    if action is not NextAction.RESET_GPU:
        return _FIXED[action]
    return (
        "# only with no process on that GPU: sudo fuser -v /dev/nvidia*",
        *reset_commands(sick),
        "# if a reset fails: sudo reboot",
    )


def reset_commands(gpus: tuple[str, ...]) -> tuple[str, ...]:
    """Return one reset per GPU; without a GPU the one that resets them all."""
    return tuple(f"sudo nvidia-smi --gpu-reset -i {gpu}" for gpu in gpus) or (
        "sudo nvidia-smi --gpu-reset",
    )
