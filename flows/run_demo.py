"""The whole loop on this machine: ``make demo``. No GPU, no keys, no network.

A small hosted model (nano-teacher behind our own server) is called over HTTP through a wrapped
``AzureOpenAI`` client; its calls train nano-student. Every stage keeps what it has done, so
that a demo which was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from prefect import flow
from pydantic import SecretStr

from flows.ingest_calls import ingest_calls
from flows.retrain_student import retrain_student
from slm_core.capture import WorkflowTracer
from slm_core.errors import ModelError, SlmError
from slm_core.presets import NANO, RetrainSpec
from slm_core.records import TRACKS, ClaimState, Example, RiskTier, Tool
from slm_core.report import LiveAnswer, ReportInput, ReportPaths, arms_table, write_report
from slm_core.serving import PromotionSpec, ask
from slm_core.settings import Settings
from slm_core.testing.workload import agent_name, generate
from tasks._progress import progress
from tasks._wiring import configure, current_settings, opened_store, run_folder

if TYPE_CHECKING:
    from openai import AzureOpenAI

HOME = Path(".slm/demo")
CALLS_PER_TRACK = 80
ROWS_PER_TRACK = 200
SHORT_ROWS_PER_TRACK = 100


@flow(name="demo")
def run_demo(seed: int = 0, rows_per_track: int = ROWS_PER_TRACK) -> ReportPaths:
    """Capture, ingest, retrain, promote, answer.

    Args:
        seed: of the workload; another one asks other questions about other tools.
        rows_per_track: test cases per track.
    """
    _say("1  capture", f"{2 * CALLS_PER_TRACK} calls to the teacher through AzureOpenAI")
    _capture_calls(seed)
    _say("2  ingest", "spool to store; one claim per 100 usable calls")
    ingested = ingest_calls(submit=False)
    run_id, claim_id = _next_run(seed)
    with opened_store() as store:
        captured, waiting = store.calls.count(), store.calls.waiting()
    _say(
        "3  retrain",
        f"{captured} calls captured; claim {claim_id} holds 100; "
        f"{waiting} usable ones wait for the next claim; {sum(ingested.unusable.values())} new "
        "ones cannot be used",
    )
    report = retrain_student(
        claim_id=claim_id, run_id=run_id, overrides=_plan(seed, rows_per_track)
    )
    if not isinstance(report, ReportInput):
        raise SlmError(f"The retraining did nothing: {report}. Start over: make demo FRESH=1")
    _say("4  answer", "one question to whoever is live now")
    report = report.model_copy(update={"seed": seed, "live_answer": _ask_live(seed)})
    write_report(report, run_folder(run_id) / "report", NANO.eval.report)
    paths = write_report(report, HOME / "report", NANO.eval.report)
    _show(report, paths)
    return paths


def _plan(seed: int, rows_per_track: int) -> RetrainSpec:
    test_set = NANO.eval.test_set.model_copy(
        update={"seed": 1000 + seed, "rows_per_track": rows_per_track}
    )
    # Here the test set asks what the demo's agents are asked, and nobody acts on the answers,
    # so a SUCCESS may go live by itself.
    return RetrainSpec(
        dataset=NANO.dataset,
        training=NANO.training,
        eval=NANO.eval.model_copy(update={"test_set": test_set}),
        promotion=PromotionSpec(risk=RiskTier.LOW),
        auto_promote=True,
    )


def _next_run(seed: int) -> tuple[str, str]:
    """Return run and claim: those that an earlier, stopped demo began, or the first claim."""
    with opened_store() as store:
        claims = store.claims.list()
    if not claims:
        raise SlmError("The teacher's calls made no claim of 100. Start over: make demo FRESH=1")
    claim = min(claims, key=lambda c: c.created_at)
    if claim.state is ClaimState.DONE:
        if claim.owner and not (HOME / "report").exists():
            # Stopped between the run's end and the demo's own report.
            shutil.copytree(run_folder(claim.owner) / "report", HOME / "report")
        raise SlmError(f"This demo has finished; see {HOME}/report. Start over: make demo FRESH=1")
    return claim.owner or f"demo-{seed}", claim.id


def _workload(seed: int) -> list[Example]:
    tracks = [list(generate(seed, CALLS_PER_TRACK, "traffic", track)) for track in TRACKS]
    return [example for pair in zip(*tracks, strict=True) for example in pair]


def _capture_calls(seed: int) -> None:
    """Ask the teacher what it was not asked before, one question after the other.

    One at a time, because the first 100 usable calls become the claim: with several at once
    their order, and so the dataset, would differ from run to run.
    """
    from openai import AzureOpenAI

    settings = current_settings()
    teacher = settings.teacher()
    examples = _workload(seed)
    with opened_store() as store:
        ingest_calls(submit=False)
        asked = {call.conversation_id for call in store.calls.select()}
    with (
        WorkflowTracer(spool_dir=settings.spool_dir, database_url=settings.database_url) as tracer,
        AzureOpenAI(
            azure_endpoint=teacher.endpoint,
            api_key=teacher.api_key.get_secret_value(),
            api_version=teacher.api_version,
        ) as plain,
        progress("teacher calls") as on_progress,
    ):
        clients = {
            track: tracer.wrap(
                plain, agent_type="sub-agent", agent_name=agent_name(track), track=track
            )
            for track in TRACKS
        }
        for done, example in enumerate(examples, start=1):
            if example.conversation_id not in asked:
                with tracer.conversation(example.conversation_id):
                    _ask_teacher(clients[example.track], teacher.model, example)
            on_progress(done, len(examples), example.track)


def _ask_teacher(client: AzureOpenAI, model: str, example: Example) -> None:
    messages: Any = [{"role": m.role, "content": m.content} for m in example.prompt]
    tools: Any = [_offered(tool) for tool in example.tools]
    client.chat.completions.create(
        model=model,
        messages=messages,
        tools=tools,
        tool_choice="auto" if example.track == "toolcall" else "none",
        temperature=0,
        max_tokens=160,
    )


def _offered(tool: Tool) -> dict[str, Any]:
    return {"type": "function", "function": tool.model_dump(mode="json")}


def _ask_live(seed: int) -> LiveAnswer | None:
    """Put one unseen question to the live route; None when the teacher still answers."""
    example = next(generate(seed + 9000, 1, "test", "toolcall"))
    with opened_store() as store:
        if store.routes.live(agent_name("toolcall"), "toolcall") is None:
            return None
        answer = ask(store, agent_name("toolcall"), "toolcall", example.prompt, example.tools)
    return LiveAnswer(
        question=example.prompt[-1].content,
        answer=answer.completion.text,
        model=answer.adapter.id,
        seconds=answer.completion.seconds,
    )


@contextmanager
def _teacher(settings: Settings) -> Iterator[Settings]:
    """Run nano-teacher behind our own server; yield settings that point at it."""
    key = secrets.token_urlsafe(18)
    log = settings.home / "teacher.log"
    command = [sys.executable, "-m", "slm_core.cli", "serve", "--port", "0", "--workers", "2"]
    with log.open("w", encoding="utf-8") as errors:
        server = subprocess.Popen(
            [*command, "--model", str(settings.assets / "nano-teacher")],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=settings.child_environment() | {"SLM_SERVER_API_KEY": key},
            # Ctrl-C is for us: we stop the server when our own work has stopped.
            start_new_session=True,
        )
    try:
        line = server.stdout.readline() if server.stdout else ""
        if not line:
            raise ModelError(f"The teacher did not start; {log} says why.")
        yield settings.model_copy(
            update={
                "azure_endpoint": json.loads(line)["url"],
                "azure_api_key": SecretStr(key),
            }
        )
    finally:
        server.terminate()
        server.wait(timeout=30)
        if server.stdout:
            server.stdout.close()


class _StopSignal:
    """Remembers that Ctrl-C was pressed, whatever error it ends in."""

    def __init__(self) -> None:
        self.seen = False
        signal.signal(signal.SIGINT, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.seen = True
        signal.default_int_handler(number, frame)


def _keep_apart(seed: int) -> None:
    """Make the demo's folder; one of another seed steps aside and is kept."""
    mark = HOME / "seed"
    if mark.exists() and (other := mark.read_text(encoding="utf-8")) != str(seed):
        HOME.rename(HOME.with_name(f"demo-seed-{other}"))
    own = HOME.with_name(f"demo-seed-{seed}")
    if own.exists() and not mark.exists():
        own.rename(HOME)
    HOME.mkdir(parents=True, exist_ok=True)
    mark.write_text(str(seed), encoding="utf-8")


def _say(stage: str, what: str) -> None:
    from rich.console import Console

    Console(stderr=True, highlight=False).print(f"\n[bold]{stage}[/bold]  {what}")


def _show(report: ReportInput, paths: ReportPaths) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=120)
    columns, rows = arms_table(report.evaluation)
    table = Table(*columns, title="strict scores")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if report.live_answer:
        console.print(f"live question  {report.live_answer.question}")
        console.print(f"live answer    {report.live_answer.answer}", markup=False)
    console.print(f"[bold]{report.decision.outcome}[/bold]  {paths.html}")


def main(arguments: list[str] | None = None) -> int:
    """Run the demo from the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="make demo", description=run_demo.__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fresh", action="store_true", help="forget an earlier demo")
    parser.add_argument("--short", action="store_true", help="half as many test rows")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    rows = SHORT_ROWS_PER_TRACK if options.short else ROWS_PER_TRACK
    stopped = _StopSignal()
    try:
        own = Settings.from_env()
        settings = Settings.from_env(
            {"SLM_HOME": str(HOME), "SLM_ASSETS": str(own.assets), "SLM_LOG_LEVEL": own.log_level}
        )
        _keep_apart(options.seed)
        if options.fresh:
            shutil.rmtree(HOME, ignore_errors=True)
            _keep_apart(options.seed)
        with _teacher(settings) as with_teacher:
            configure(with_teacher)
            run_demo(seed=options.seed, rows_per_track=rows)
    except BaseException as error:
        # Ctrl-C also ends Prefect's own server, and its absence may be what we hear of first.
        if stopped.seen:
            _say("stopped", "`make demo` goes on from here")
            return 130
        if isinstance(error, SlmError):
            _say("[red]failed[/red]", str(error))
            return 1
        raise
    _say("done", f"in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
