"""Who may go on with a run, and how Prefect is asked to."""

from __future__ import annotations

import typer

from slm_core.cli.prefect_client import PrefectClient
from slm_core.cli.run_account import RunAccount
from slm_core.cli.terminal import show_facts, show_json
from slm_core.errors import ConfigError, RunBusy

LEAST_ATTEMPTS = 3
"""What `resume/run` allows when nobody says more."""


def refuse(run: RunAccount, *, host_is_dead: bool) -> None:
    """Refuse what would do the same work twice, or has no work left.

    Raises:
        RunBusy: somebody is at work on it, or may be.
        ConfigError: it is complete.
    """
    if run.state == "at work":
        raise RunBusy(f"Run {run.run_id} is at work; wait for it, or cancel it first.")
    if run.state == "completed":
        raise ConfigError(f"Run {run.run_id} is complete; there is nothing to go on with.")
    if run.state == "elsewhere" and not host_is_dead:
        raise RunBusy(
            f"Run {run.run_id} began on {run.host or 'another machine'} and was never reported to "
            "have ended. If that machine is gone for good, add --host-is-dead."
        )


def resume_by_prefect(
    client: PrefectClient, run: RunAccount, *, host_is_dead: bool, as_json: bool
) -> None:
    """Let a worker go on with ``run``, and say where to look.

    Raises:
        PrefectUnavailable: the server does not answer, or refuses.
        RunBusy: an evaluation that has not ended.
    """
    if run.flow == "eval":
        client.retry(run.run_id)
        flow_run = {"id": run.run_id, "name": run.run_id}
    else:
        deployment = client.deployment("resume/run")
        parameters = {"run_id": run.run_id, "host_is_dead": host_is_dead}
        if "max_attempts" in deployment["parameter_openapi_schema"]["properties"]:
            # A person asks: the limit is for what resumes by itself.
            begun = client.attempts(run.flow_run_id or run.run_id)
            parameters["max_attempts"] = max(LEAST_ATTEMPTS, begun + 1)
        flow_run = client.start(deployment["id"], parameters)
    url = f"{client.dashboard}/runs/flow-run/{flow_run['id']}"
    if as_json:
        show_json({"run_id": run.run_id, "flow_run_id": flow_run["id"], "url": url})
        return
    show_facts({"run": run.run_id, "taken up by": f"flow run {flow_run['name']}", "see": url})
    typer.echo(f"  slm runs logs {run.run_id} --follow")
