"""``slm runs``: every training, retraining and evaluation, for who has no browser.

Reads the folder of runs, the store and, if one is named, the Prefect server; each may be away.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slm_core.cli.opening import load_settings, opened_store
from slm_core.cli.terminal import (
    JsonFlag,
    age,
    show_json,
    show_table,
    warn,
)
from slm_core.errors import ConfigError, PrefectUnavailable, RecordNotFound, StoreError

if TYPE_CHECKING:
    from slm_core.cli.prefect_client import PrefectClient
    from slm_core.cli.run_account import RunAccount
    from slm_core.settings import Settings
    from slm_core.store import Store

app = typer.Typer(no_args_is_help=True, help="Trainings, retrainings and evaluations.")

RunId = Annotated[str, typer.Argument(help="Id of the run, or enough of it to tell it apart.")]


@app.command("list")
def list_runs(as_json: JsonFlag = False) -> None:
    """List every run, oldest first: how it stands, how far it came, and why it ended."""
    settings = load_settings()
    with _store_if_there(settings) as store:
        found = _accounts(settings, store)
    if as_json:
        show_json(found)
        return
    show_table(
        ("run", "flow", "state", "stage", "step", "age", "host", "why"),
        map(_row, found),
        empty=f"No runs yet in {settings.home / 'runs'}, and none in the store.",
    )


@app.command()
def show(run: RunId, as_json: JsonFlag = False) -> None:
    """Show one run: what it was told, its attempts and checkpoints, its results, what to do."""
    from slm_core.cli.run_account import choose
    from slm_core.cli.run_next import next_step
    from slm_core.cli.run_page import checkpoints_of, show_run

    settings = load_settings()
    with _store_if_there(settings) as store:
        found = choose(_accounts(settings, store), run)
        decision = _decision(found, store)
    flow_run = _flow_run(settings, found)
    step = next_step(found)
    checkpoints = {part.run_id: checkpoints_of(part) for part in found.parts}
    if as_json:
        show_json(
            {
                **found.model_dump(mode="json"),
                "decision": decision,
                "checkpoints": checkpoints,
                "flow_run": flow_run,
                "next": step._asdict(),
            }
        )
        return
    show_run(found, decision, checkpoints, flow_run, step)


@app.command()
def resume(
    run: Annotated[
        str | None,
        typer.Argument(help="Id of the run; without it the newest that crashed or was stopped."),
    ] = None,
    here: Annotated[
        bool, typer.Option("--here", help="In this terminal, though a Prefect server is named.")
    ] = False,
    host_is_dead: Annotated[
        bool, typer.Option("--host-is-dead", help="The machine it began on is gone for good.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Go on with a run: by Prefect if PREFECT_API_URL names a server, else in this terminal.

    In a terminal only the training of a retraining is done; what comes after it needs Prefect.
    """
    from slm_core.cli.prefect_client import no_server, prefect_client
    from slm_core.cli.run_account import choose
    from slm_core.cli.run_resume import refuse, resume_by_prefect
    from slm_core.cli.train import resume_here
    from slm_core.training.orders import OrderBook

    settings = load_settings(log_level="INFO")
    book = OrderBook(settings.home / "runs")
    run_id = run or book.newest_resumable().run_id
    with _store_if_there(settings) as store:
        found = choose(_accounts(settings, store), run_id)
    refuse(found, host_is_dead=host_is_dead)
    if settings.prefect_api_url is not None and not here:
        try:
            with prefect_client(settings) as client:
                resume_by_prefect(client, found, host_is_dead=host_is_dead, as_json=as_json)
        except PrefectUnavailable as error:
            if found.flow == "eval":  # goes on by Prefect only
                raise
            raise PrefectUnavailable(
                f"{error.message} Without Prefect, on the machine that is to train: "
                f"slm runs resume {found.run_id} --here",
                **error.context,
            ) from error
        return
    if found.flow == "eval":
        raise ConfigError(f"An evaluation goes on by Prefect only. {no_server(settings)}")
    resume_here(settings, book.get(found.run_id), as_json=as_json)


@app.command()
def logs(
    run: RunId,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the run ends, or Ctrl-C.")
    ] = False,
    attempt: Annotated[
        int | None, typer.Option(min=1, help="Only what the workers of this attempt wrote.")
    ] = None,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, help="Last lines of each log; 0 shows all.")
    ] = 200,
) -> None:
    """Show what the workers of a run wrote, then what its flow run logged in Prefect."""
    from slm_core.cli import run_logs
    from slm_core.cli.run_account import choose
    from slm_core.training.orders import OrderBook

    settings = load_settings()
    with _store_if_there(settings) as store:
        found = choose(_accounts(settings, store), run)
    files = run_logs.worker_logs(found)
    for file in files:
        text: str | None = file.read_text("utf-8", "replace")
        if attempt is not None and text is not None:
            text = run_logs.of_attempt(text, attempt)
        if text is not None:
            typer.echo(f"---- {file}")
            typer.echo(run_logs.last_lines(text, lines))
        elif attempt is not None:
            warn(f"{file} tells of no attempt {attempt}; `slm runs show` lists the attempts.")
    if not files:
        warn(f"No worker of run {found.run_id} has written anything on this machine.")
    if attempt is not None:
        return
    flow_runs = [found.flow_run_id or found.run_id]
    with _client_if_named(settings) as client:
        server = _show_flow_log(client, flow_runs, lines) if client else None
        if not follow:
            return
        book = OrderBook(settings.home / "runs")
        watch = run_logs.Watch(found, lambda: book.at_work(found.run_id))
        for line in run_logs.follow(
            lambda: run_logs.worker_logs(found), server, flow_runs, going_on=watch
        ):
            typer.echo(line)


def _accounts(settings: Settings, store: Store | None) -> list[RunAccount]:
    from slm_core.cli.run_account import find_accounts

    return find_accounts(settings.home / "runs", store)


@contextmanager
def _store_if_there(settings: Settings) -> Iterator[Store | None]:
    """Open the store; None when it cannot be had, with a warning unless there never was one."""
    with ExitStack() as stack:
        store: Store | None = None
        try:
            store = stack.enter_context(opened_store(settings))
        except RecordNotFound:
            pass
        except StoreError as error:
            warn(f"The store is left out: {error}")
        yield store


@contextmanager
def _client_if_named(settings: Settings) -> Iterator[PrefectClient | None]:
    if settings.prefect_api_url is None:
        yield None
        return
    from slm_core.cli.prefect_client import prefect_client

    with prefect_client(settings) as client:
        yield client


def _row(run: RunAccount) -> tuple[str, ...]:
    total = run.total_steps
    return (
        run.run_id,
        run.flow,
        run.state,
        run.stage,
        (f"{run.step} of {total}" if total else str(run.step)) if run.parts else "",
        age(run.created_at),
        run.host,
        run.why or ", ".join(run.faults),
    )


def _decision(run: RunAccount, store: Store | None) -> str | None:
    """Return the verdict on the run's evaluation."""
    if run.evaluation is None or store is None:
        return None
    from pydantic_core import from_json

    evaluation_id = from_json(Path(run.evaluation).read_bytes())["id"]
    found = [one for one in store.decisions.list() if one.evaluation_id == evaluation_id]
    return f"{found[-1].outcome}  {found[-1].id}" if found else None


def _flow_run(settings: Settings, run: RunAccount) -> dict[str, Any] | None:
    """Return what Prefect knows of the run; None without a server, or when it knows nothing."""
    with _client_if_named(settings) as client:
        if client is None:
            return None
        try:
            found = client.flow_run(run.flow_run_id or run.run_id)
        except PrefectUnavailable as error:
            warn(str(error))
            return None
        if found is None:
            return None
        state = found.get("state") or {}
        return {
            "id": found["id"],
            "name": found["name"],
            "state": state.get("name", "unknown"),
            "message": state.get("message") or "",
            "url": f"{client.dashboard}/runs/flow-run/{found['id']}",
        }


def _show_flow_log(client: PrefectClient, flow_runs: list[str], lines: int) -> PrefectClient | None:
    """Show what the flow run logged; None when the server cannot say."""
    from slm_core.cli.run_logs import shown

    try:
        found = [shown(line) for line in client.logs(flow_runs)]
    except PrefectUnavailable as error:
        warn(str(error))
        return None
    if found:
        typer.echo(f"---- Prefect, flow run {flow_runs[0]}")
        typer.echo("\n".join(found[-lines:] if lines else found))
    return client
