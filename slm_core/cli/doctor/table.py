"""The table of all checks, in the order in which they are shown."""

from __future__ import annotations

from slm_core.cli.doctor import machine, outside, prefect_server, records
from slm_core.cli.doctor.findings import Check

OF_MACHINE = (
    Check("python", machine.python),
    Check("packages", machine.packages),
)
"""Those that need no settings, and so hold even where the environment is broken."""

OF_SITE = (
    Check("repository", machine.repository),
    Check("disk", machine.disk),
    Check("secrets", machine.secrets),
    Check("clock", machine.clock, 12.0),
    Check("gpus", machine.gpus, 12.0),
    Check("kernel log", machine.kernel_log, 8.0),
    Check("database", records.database, 12.0),
    Check("spool", records.spool, 12.0),
    Check("quarantine", records.quarantine, 12.0),
    Check("claims", records.claims, 12.0),
    Check("prefect", prefect_server.api, 8.0),
    Check("prefect settings", prefect_server.server_settings, 8.0),
    Check("telemetry", prefect_server.telemetry, 8.0),
    Check("deployments", prefect_server.deployments, 8.0),
    Check("workers", prefect_server.workers, 12.0),
    Check("automations", prefect_server.automations, 8.0),
    Check("scheduler", prefect_server.scheduler, 12.0),
    Check("teacher", outside.teacher, 8.0),
    Check("langfuse", outside.langfuse, 13.0),
    Check("hub", outside.hub, 8.0),
)
