"""Whether GPUs work, and what to do when they do not. No torch here, and no driver library."""

from slm_core.health.findings import next_action
from slm_core.health.preflight import check_gpus
from slm_core.health.spec import HealthSpec

__all__ = ["HealthSpec", "check_gpus", "next_action"]
